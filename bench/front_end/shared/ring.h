/* The driver's side of one split virtqueue. */
#ifndef FRONT_END_RING_H
#define FRONT_END_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "ram.h"

#define F_INDIRECT_DESC (1ull << 28)
#define F_EVENT_IDX (1ull << 29)
#define MAX_DESCRIPTORS 520 /* 1 MiB in pages, and room for the fixed parts */

struct buffer {
    uint64_t at;
    uint32_t bytes;
};

struct chain { /* readable buffers first, as the standard wants */
    unsigned readable, writable;
    struct buffer buffers[MAX_DESCRIPTORS];
};

struct ring {
    struct ram *ram;
    unsigned index, size;
    bool indirect, event_idx;
    int kick_fd, call_fd;
    uint64_t at_desc, at_avail, at_used;
    uint64_t *at_tables; /* one indirect table for each head */
    void **owners;       /* the owner of the chain in flight that starts at a head */
    uint16_t *next;      /* free list, and links of direct chains */
    uint16_t free_head, free_count;
    uint16_t avail_index, last_used;
    uint64_t kicks, interrupts;
};

void ring_make(struct ring *ring, struct ram *ram, unsigned index, unsigned size,
               uint64_t features);
bool ring_add(struct ring *ring, const struct chain *chain, void *owner);
void *ring_reap(struct ring *ring, uint32_t *written);
bool ring_has_used(const struct ring *ring);
void ring_hush(struct ring *ring);
bool ring_arm(struct ring *ring);
void ring_took_interrupt(struct ring *ring);
uint64_t ring_table_bytes(void);

#endif

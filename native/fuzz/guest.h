/*
 * The guest of a fuzzed queue: its ring and the memory that requests and replies are in.
 *
 * Its chains are lawful until guest_poke changes its memory; from then on it expects nothing of the
 * ring. Must not know who serves it.
 */
#ifndef PORTHOLE_FUZZ_GUEST_H
#define PORTHOLE_FUZZ_GUEST_H

#include <linux/fuse.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>

#include "../mounts.h"
#include "../queue.h"
#include "fuzz.h"

enum {
    GUEST_SLOTS = 12, /* of shares that requests are for: more than a queue caches */
    GUEST_CHAINS = 16,
    GUEST_CHAIN_DESCS = 4, /* two to read, two to write */
    GUEST_RING_SIZE = GUEST_CHAINS * GUEST_CHAIN_DESCS,
    GUEST_DESC_BYTES = GUEST_RING_SIZE * sizeof(struct vring_desc),
    GUEST_AVAIL_BYTES = 6 + 2 * GUEST_RING_SIZE,
    GUEST_USED_BYTES = 6 + 8 * GUEST_RING_SIZE,
};

/* A chain as the guest made it. */
struct guest_chain {
    struct fuse_in_header header; /* zeros if the request is shorter */
    uint64_t room;
    bool has_header, is_waiting, is_for_python;
};

struct guest {
    /* Each is memory of its own, with no more room than it needs. */
    struct vring_desc *desc;
    uint16_t *avail;
    uint8_t *used;
    uint8_t *ram;
    struct ph_span span; /* where the ram is */
    struct guest_chain chains[GUEST_CHAINS];
    uint16_t seen_used;
    bool is_hostile; /* whether the ring is no longer what the guest has made */
};

void guest_make(struct guest *guest);
void guest_free(struct guest *guest);
/* Begin anew, as its driver does after a fault. */
void guest_reset(struct guest *guest);
/* Put a request for any share into the ring, if there is room. */
void guest_ask(struct guest *guest, struct input *input);
/* Change a byte that the device reads. */
void guest_poke(struct guest *guest, struct input *input);
/* With MUTATING, change requests and indirect tables until mutator_end. */
void guest_begin_mutating(const struct guest *guest);
/* Expect the chain at this place of the avail ring back with nothing written, as from Python. */
void guest_expect_python(struct guest *guest, uint16_t next_avail);
/* Take what was given back, and check it; the loop may serve mounted slots only. */
void guest_collect(struct guest *guest, const bool is_mounted[GUEST_SLOTS]);

#endif

/*
 * One split virtqueue, from the device's side: VIRTIO 1.2, section 2.7.
 *
 * Owns the ring's indices, its notifications, and the way along descriptor chains. The guest may
 * write to all of this memory at any time, so everything is read once. A chain that breaks a rule
 * is left in the ring: Python takes, refuses and reports it. Must not know what requests mean.
 */
#ifndef PORTHOLE_QUEUE_H
#define PORTHOLE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "buffers.h"

/* A stretch of guest memory that stays mapped as long as the ring is served. */
struct ph_span {
    uint64_t gpa;
    uint64_t size_bytes;
    uint8_t *address;
};

/* The indices that Python's queue hands over and takes back; the names are those of queue.py. */
struct ph_queue_state {
    uint16_t next_avail;
    uint16_t seen_avail;
    uint16_t next_used;
    uint16_t signalled_used;
    uint32_t signal_due;
    uint32_t unsignalled;
    uint64_t unsignalled_bytes;
    uint64_t spin_ns;
};

/* The queue's thread alone writes these. */
struct ph_counters {
    uint64_t requests;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t highest_slot;
    uint64_t frames_dropped; /* of a virtio-net queue, as the next ones */
    uint64_t frames_spoofed; /* of those: sent under an address of another station */
    uint64_t throttled;      /* times that it waited for its rate limit */
};

/* A ring's setup; it stays the same while the ring is served. The caller owns the descriptors. */
struct ph_queue_setup {
    void *desc;
    void *avail;
    void *used;
    const struct ph_span *spans;
    struct ph_counters *counters;
    uint32_t span_count;
    uint32_t size;
    int32_t kick_fd;
    int32_t call_fd; /* -1: the driver polls */
    int32_t stop_fd;
    uint32_t event_idx;
    uint32_t indirect;
    uint32_t counts_slots; /* the first span is a bounce pool */
};

enum ph_look {
    PH_LOOK_NOTHING,
    PH_LOOK_CHAIN,
    PH_LOOK_PYTHON, /* a rule is broken, which Python reports */
};

enum ph_wait {
    PH_WAIT_CHAIN,
    PH_WAIT_STOPPED,
    PH_WAIT_WOKEN, /* by the further descriptor */
    PH_WAIT_PYTHON,
    PH_WAIT_READY, /* the descriptor that is waited for */
};

struct ph_queue;

struct ph_queue *ph_queue_new(const struct ph_queue_setup *setup);
void ph_queue_free(struct ph_queue *queue);
struct ph_queue_state *ph_queue_state(struct ph_queue *queue);
struct ph_counters *ph_queue_counters(struct ph_queue *queue);
uint32_t ph_queue_size(const struct ph_queue *queue);

/* From any thread. */
void ph_queue_stop(struct ph_queue *queue);
void ph_queue_set_call(struct ph_queue *queue, int call_fd);
void ph_queue_interrupt(struct ph_queue *queue); /* a notification that blocks, if there is one */
void ph_queue_close(struct ph_queue *queue);
bool ph_queue_is_stopped(const struct ph_queue *queue);

/* By the thread that serves the ring. */
void ph_queue_set_wake(struct ph_queue *queue, int wake_fd); /* a further descriptor; -1: none */
enum ph_look ph_queue_look(struct ph_queue *queue);
bool ph_queue_take(struct ph_queue *queue, struct ph_chain *chain);
void ph_queue_put_back(struct ph_queue *queue, const struct ph_chain *chain);
void ph_queue_push(struct ph_queue *queue, uint32_t written_bytes);
void ph_queue_notify(struct ph_queue *queue);
enum ph_wait ph_queue_wait(struct ph_queue *queue, void (*before_sleep)(void *), void *context);
/* Wait for a descriptor of the device instead of chains; `events` are those of poll(2). */
enum ph_wait ph_queue_wait_for(struct ph_queue *queue, int fd, short events);
/* The same for what does not come at once: no looking around, but sleep. */
enum ph_wait ph_queue_sleep_for(struct ph_queue *queue, int fd, short events);

#endif

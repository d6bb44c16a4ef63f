/*
 * The interface between the parts of a queue: queue.c, chain.c and queue_wait.c.
 */
#ifndef PORTHOLE_QUEUE_PRIVATE_H
#define PORTHOLE_QUEUE_PRIVATE_H

#include <endian.h>
#include <stdatomic.h>

#include "mutex.h"
#include "queue.h"

/* The same as in queue.py, chain.py and pool.py, which explain them. */
enum {
    PH_SPIN_NS = 50000,
    PH_SPIN_MIN_NS = 1000,
    PH_BATCH_REQUESTS = 8,
    PH_BATCH_BYTES = 1 << 20,
    PH_MIN_INDIRECT_LIMIT = 1024,
    PH_SLOT_BYTES = 2048,
};
#define PH_MAX_CHAIN_BYTES 0xffffffffu

struct ph_queue {
    struct ph_queue_setup setup; /* its call_fd is not used */
    struct ph_queue_state state;
    uint16_t *avail; /* flags, idx, ring[size], used_event */
    uint8_t *used;   /* flags, idx, {id, len} ring[size], avail_event */
    uint16_t head;   /* of the latest chain */
    int wake_fd;
    uint64_t high;        /* end of the highest buffer in the pool, in bytes from its start */
    uint64_t taken_bytes; /* in the buffers of the latest chain */
    struct iovec *iov;
    bool is_awake; /* counted in `awake` */
    atomic_bool stopped;
    atomic_bool closed; /* written with the mutex */
    struct ph_mutex call_mutex;
    int call_fd PH_GUARDED_BY(call_mutex); /* -1: the driver polls */
    bool is_notifying PH_GUARDED_BY(call_mutex);
    pthread_t notifier PH_GUARDED_BY(call_mutex); /* the thread that writes to call_fd */
};

/* The compiler must not read or write a field of a ring twice. */
static inline uint16_t ph_load16(const uint16_t *field)
{
    return le16toh(__atomic_load_n(field, __ATOMIC_RELAXED));
}

static inline void ph_store16(uint16_t *field, uint16_t value)
{
    __atomic_store_n(field, htole16(value), __ATOMIC_RELAXED);
}

/* How many buffers the next chain may have. */
uint32_t ph_queue_most_buffers(const struct ph_queue *queue);
/* Like ph_queue_take; its head is queue->head, and its buffers are put here. */
bool ph_queue_take_into(struct ph_queue *queue, struct iovec *buffers, struct ph_chain *chain);
/* Write a used element, which the driver does not see before ph_queue_publish; false: it is closed
 */
bool ph_queue_hand_back(struct ph_queue *queue, uint32_t head, uint32_t written_bytes);
/* Show the driver what was handed back. */
void ph_queue_publish(struct ph_queue *queue, uint32_t count, uint64_t written_bytes);
/* Whether so much was published that the driver is notified now. */
bool ph_queue_is_batch(const struct ph_queue *queue);

/* Count the queue among those that are at work, or take it out of that count. */
void ph_queue_set_awake(struct ph_queue *queue, bool is_awake);

#endif

#include "queue.h"

#include <linux/virtio_ring.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "queue_private.h"

enum { SHORT_BYTES = 32768 };

PH_ALONE struct ph_queue *ph_queue_new(const struct ph_queue_setup *setup)
{
    struct ph_queue *queue = calloc(1, sizeof(*queue));

    if (!queue)
        return NULL;
    queue->setup = *setup;
    queue->iov = calloc(ph_queue_most_buffers(queue), sizeof(*queue->iov));
    if (!queue->iov) {
        free(queue);
        return NULL;
    }
    ph_mutex_init(&queue->call_mutex);
    queue->call_fd = setup->call_fd;
    queue->avail = setup->avail;
    queue->used = setup->used;
    queue->wake_fd = -1;
    queue->high = setup->counters->highest_slot * PH_SLOT_BYTES;
    return queue;
}

void ph_queue_free(struct ph_queue *queue)
{
    ph_queue_set_awake(queue, false);
    ph_mutex_destroy(&queue->call_mutex);
    free(queue->iov);
    free(queue);
}

struct ph_queue_state *ph_queue_state(struct ph_queue *queue)
{
    return &queue->state;
}

struct ph_counters *ph_queue_counters(struct ph_queue *queue)
{
    return queue->setup.counters;
}

uint32_t ph_queue_size(const struct ph_queue *queue)
{
    return queue->setup.size;
}

/* A chain may begin in the ring and end in an indirect table. */
uint32_t ph_queue_most_buffers(const struct ph_queue *queue)
{
    uint32_t size = queue->setup.size;

    return size + (size > PH_MIN_INDIRECT_LIMIT ? size : PH_MIN_INDIRECT_LIMIT);
}

void ph_queue_stop(struct ph_queue *queue)
{
    atomic_store(&queue->stopped, true);
}

bool ph_queue_is_stopped(const struct ph_queue *queue)
{
    return atomic_load_explicit(&queue->stopped, memory_order_relaxed);
}

void ph_queue_set_call(struct ph_queue *queue, int call_fd)
{
    ph_mutex_take(&queue->call_mutex);
    queue->call_fd = call_fd;
    ph_mutex_let_go(&queue->call_mutex);
}

/* No other system call of the thread is interrupted: there is no signal outside of the write. */
void ph_queue_interrupt(struct ph_queue *queue)
{
    ph_mutex_take(&queue->call_mutex);
    if (queue->is_notifying)
        pthread_kill(queue->notifier, SIGURG); /* the same as in peer_writes.py */
    ph_mutex_let_go(&queue->call_mutex);
}

/* A thread that is stuck in a request may return after this: it touches neither ring nor
 * descriptor. */
void ph_queue_close(struct ph_queue *queue)
{
    ph_mutex_take(&queue->call_mutex);
    atomic_store(&queue->closed, true);
    ph_mutex_let_go(&queue->call_mutex);
}

void ph_queue_set_wake(struct ph_queue *queue, int wake_fd)
{
    queue->wake_fd = wake_fd;
}

enum ph_look ph_queue_look(struct ph_queue *queue)
{
    uint16_t seen = le16toh(__atomic_load_n(&queue->avail[1], __ATOMIC_ACQUIRE));
    uint16_t waiting = (uint16_t)(seen - queue->state.next_avail);

    if (waiting > queue->setup.size)
        return PH_LOOK_PYTHON;
    queue->state.seen_avail = seen;
    return waiting ? PH_LOOK_CHAIN : PH_LOOK_NOTHING;
}

static uint16_t *used_event(struct ph_queue *queue)
{
    return &queue->avail[2 + queue->setup.size];
}

/*
 * Whether the driver must be woken up now to come back before the ring is empty. It needs the time
 * of a few short requests to wake up. Python's queue has no such rule, because there waking the
 * driver takes as long as a whole request.
 */
static bool is_running_low(const struct ph_queue *queue)
{
    uint16_t waiting = (uint16_t)(queue->state.seen_avail - queue->state.next_avail);

    return queue->state.unsignalled > 1 && waiting <= 3 * queue->state.unsignalled &&
           queue->taken_bytes <= SHORT_BYTES;
}

inline bool ph_queue_hand_back(struct ph_queue *queue, uint32_t head, uint32_t written_bytes)
{
    struct ph_queue_state *state = &queue->state;
    struct vring_used_elem element = {htole32(head), htole32(written_bytes)};

    queue->setup.counters->requests++;
    queue->setup.counters->bytes_out += written_bytes;
    if (atomic_load(&queue->closed))
        return false;
    memcpy(queue->used + 4 + 8 * (size_t)(state->next_used & (queue->setup.size - 1)), &element,
           sizeof(element));
    state->next_used++;
    return true;
}

inline void ph_queue_publish(struct ph_queue *queue, uint32_t count, uint64_t written_bytes)
{
    struct ph_queue_state *state = &queue->state;

    __atomic_store_n((uint16_t *)(queue->used + 2), htole16(state->next_used), __ATOMIC_RELEASE);
    state->unsignalled += count;
    state->unsignalled_bytes += written_bytes;
}

inline bool ph_queue_is_batch(const struct ph_queue *queue)
{
    return queue->state.unsignalled >= PH_BATCH_REQUESTS ||
           queue->state.unsignalled_bytes >= PH_BATCH_BYTES;
}

/* Give the latest chain back to the driver, and notify it now and then. */
void ph_queue_push(struct ph_queue *queue, uint32_t written_bytes)
{
    if (!ph_queue_hand_back(queue, queue->head, written_bytes))
        return;
    ph_queue_publish(queue, 1, written_bytes);
    if (ph_queue_is_batch(queue) || is_running_low(queue))
        ph_queue_notify(queue);
}

void ph_queue_notify(struct ph_queue *queue)
{
    struct ph_queue_state *state = &queue->state;
    bool wanted;
    int call_fd = -1;

    state->unsignalled = 0;
    state->unsignalled_bytes = 0;
    ph_mutex_take(&queue->call_mutex);
    if (!atomic_load(&queue->closed)) {
        /* The used index must be visible before the driver's wish is read (section 2.7.7.2). */
        atomic_thread_fence(memory_order_seq_cst);
        if (queue->setup.event_idx) {
            wanted = state->signal_due || vring_need_event(ph_load16(used_event(queue)),
                                                           state->next_used, state->signalled_used);
            state->signalled_used = state->next_used;
            state->signal_due = 0;
        } else {
            wanted = !(ph_load16(&queue->avail[0]) & VRING_AVAIL_F_NO_INTERRUPT);
        }
        if (wanted)
            call_fd = queue->call_fd;
    }
    queue->is_notifying = call_fd >= 0;
    queue->notifier = pthread_self();
    ph_mutex_let_go(&queue->call_mutex);
    /* The front-end could make the write block, so the mutex is not held. */
    if (call_fd >= 0) {
        uint64_t one = 1;
        ssize_t sent = write(call_fd, &one, sizeof(one));

        (void)sent; /* a full counter is a pending signal, also if the write was interrupted */
        ph_mutex_take(&queue->call_mutex);
        queue->is_notifying = false;
        ph_mutex_let_go(&queue->call_mutex);
    }
}

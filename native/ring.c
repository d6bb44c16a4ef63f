#include "ring.h"

#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ring_private.h"

enum { SHORT_BYTES = 32768 };

PH_ALONE struct ph_ring *ph_ring_new(const struct ph_ring_setup *setup)
{
    uint32_t size = setup->size;
    uint32_t indirect = size > PH_MIN_INDIRECT_LIMIT ? size : PH_MIN_INDIRECT_LIMIT;
    struct ph_ring *ring = calloc(1, sizeof(*ring));

    if (!ring)
        return NULL;
    /* A chain may begin in the ring and end in an indirect table. */
    ring->iov = calloc(size + indirect, sizeof(*ring->iov));
    if (!ring->iov) {
        free(ring);
        return NULL;
    }
    ph_mutex_init(&ring->call_mutex);
    ring->setup = *setup;
    ring->call_fd = setup->call_fd;
    ring->avail = setup->avail;
    ring->used = setup->used;
    ring->wake_fd = -1;
    ring->high = setup->counters->highest_slot * PH_SLOT_BYTES;
    return ring;
}

void ph_ring_free(struct ph_ring *ring)
{
    ph_ring_set_awake(ring, false);
    ph_mutex_destroy(&ring->call_mutex);
    free(ring->iov);
    free(ring);
}

struct ph_ring_state *ph_ring_state(struct ph_ring *ring)
{
    return &ring->state;
}

void ph_ring_stop(struct ph_ring *ring)
{
    atomic_store(&ring->stopped, true);
}

bool ph_ring_is_stopped(const struct ph_ring *ring)
{
    return atomic_load_explicit(&ring->stopped, memory_order_relaxed);
}

void ph_ring_set_call(struct ph_ring *ring, int call_fd)
{
    ph_mutex_take(&ring->call_mutex);
    ring->call_fd = call_fd;
    ph_mutex_let_go(&ring->call_mutex);
}

/* A thread that is stuck in a request may return after this: it touches neither ring nor
 * descriptor. */
void ph_ring_close(struct ph_ring *ring)
{
    ph_mutex_take(&ring->call_mutex);
    atomic_store(&ring->closed, true);
    ph_mutex_let_go(&ring->call_mutex);
}

void ph_ring_set_wake(struct ph_ring *ring, int wake_fd)
{
    ring->wake_fd = wake_fd;
}

enum ph_look ph_ring_look(struct ph_ring *ring)
{
    uint16_t seen = le16toh(__atomic_load_n(&ring->avail[1], __ATOMIC_ACQUIRE));
    uint16_t waiting = (uint16_t)(seen - ring->state.next_avail);

    if (waiting > ring->setup.size)
        return PH_LOOK_PYTHON;
    ring->state.seen_avail = seen;
    return waiting ? PH_LOOK_CHAIN : PH_LOOK_NOTHING;
}

static uint16_t *used_event(struct ph_ring *ring)
{
    return &ring->avail[2 + ring->setup.size];
}

/*
 * Whether the driver must be woken up now to come back before the ring is empty. It needs the time
 * of a few short requests to wake up. Python's queue has no such rule, because there waking the
 * driver takes as long as a whole request.
 */
static bool is_running_low(const struct ph_ring *ring)
{
    uint16_t waiting = (uint16_t)(ring->state.seen_avail - ring->state.next_avail);

    return ring->state.unsignalled > 1 && waiting <= 3 * ring->state.unsignalled &&
           ring->taken_bytes <= SHORT_BYTES;
}

/* Give the latest chain back to the driver, and notify it now and then. */
void ph_ring_push(struct ph_ring *ring, uint32_t written_bytes)
{
    struct ph_ring_state *state = &ring->state;
    struct vring_used_elem element = {htole32(ring->head), htole32(written_bytes)};

    ring->setup.counters->requests++;
    ring->setup.counters->bytes_out += written_bytes;
    if (atomic_load(&ring->closed))
        return;
    memcpy(ring->used + 4 + 8 * (size_t)(state->next_used & (ring->setup.size - 1)), &element,
           sizeof(element));
    state->next_used++;
    __atomic_store_n((uint16_t *)(ring->used + 2), htole16(state->next_used), __ATOMIC_RELEASE);
    state->unsignalled++;
    state->unsignalled_bytes += written_bytes;
    if (state->unsignalled >= PH_BATCH_REQUESTS || state->unsignalled_bytes >= PH_BATCH_BYTES ||
        is_running_low(ring))
        ph_ring_notify(ring);
}

void ph_ring_notify(struct ph_ring *ring)
{
    struct ph_ring_state *state = &ring->state;
    bool wanted;
    int call_fd = -1;

    state->unsignalled = 0;
    state->unsignalled_bytes = 0;
    ph_mutex_take(&ring->call_mutex);
    if (!atomic_load(&ring->closed)) {
        /* The used index must be visible before the driver's wish is read (section 2.7.7.2). */
        atomic_thread_fence(memory_order_seq_cst);
        if (ring->setup.event_idx) {
            wanted = state->signal_due || vring_need_event(ph_load16(used_event(ring)),
                                                           state->next_used, state->signalled_used);
            state->signalled_used = state->next_used;
            state->signal_due = 0;
        } else {
            wanted = !(ph_load16(&ring->avail[0]) & VRING_AVAIL_F_NO_INTERRUPT);
        }
        if (wanted)
            call_fd = ring->call_fd;
    }
    ph_mutex_let_go(&ring->call_mutex);
    /* The front-end could make the write block, so the mutex is not held. */
    if (call_fd >= 0) {
        uint64_t one = 1;
        ssize_t sent = write(call_fd, &one, sizeof(one));

        (void)sent; /* a full counter is a pending signal */
    }
}

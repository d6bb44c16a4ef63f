/*
 * Waiting for chains: awake for some microseconds, then asleep.
 */
#include <errno.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <sched.h>

#include "clock.h"
#include "queue_private.h"

/* How many queues of this process are at work, or look for work. */
static atomic_uint awake;

void ph_queue_set_awake(struct ph_queue *queue, bool is_awake)
{
    if (is_awake && !queue->is_awake)
        atomic_fetch_add_explicit(&awake, 1, memory_order_relaxed);
    else if (!is_awake && queue->is_awake)
        atomic_fetch_sub_explicit(&awake, 1, memory_order_relaxed);
    queue->is_awake = is_awake;
}

static uint16_t *avail_event(struct ph_queue *queue)
{
    return (uint16_t *)(queue->used + 4 + 8 * (size_t)queue->setup.size);
}

/* Yield the processor if another queue may need it; otherwise yielding only costs time. */
static void relax(void)
{
    if (atomic_load_explicit(&awake, memory_order_relaxed) > 1) {
        sched_yield();
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Look around for longer if that has paid off lately. */
static void adapt_spin(struct ph_queue *queue, bool has_paid_off)
{
    queue->state.spin_ns = has_paid_off ? PH_SPIN_NS : queue->state.spin_ns / 2;
    if (queue->state.spin_ns < PH_SPIN_MIN_NS)
        queue->state.spin_ns = PH_SPIN_MIN_NS;
}

/* Look for chains for some time. */
static enum ph_look spin(struct ph_queue *queue)
{
    uint64_t end = ph_now_ns() + queue->state.spin_ns;

    do {
        enum ph_look look = ph_queue_look(queue);

        if (look != PH_LOOK_NOTHING) {
            adapt_spin(queue, true);
            return look;
        }
        relax();
    } while (!ph_queue_is_stopped(queue) && ph_now_ns() < end);
    adapt_spin(queue, false);
    return PH_LOOK_NOTHING;
}

/* The same for a descriptor; also ends when the queue is to stop or is woken. */
static bool spin_for(struct ph_queue *queue, struct pollfd *fds, nfds_t count)
{
    uint64_t end = ph_now_ns() + queue->state.spin_ns;

    do {
        if (poll(fds, count, 0) > 0) {
            adapt_spin(queue, true);
            return true;
        }
        relax();
    } while (!ph_queue_is_stopped(queue) && ph_now_ns() < end);
    adapt_spin(queue, false);
    return false;
}

/* Ask for a kick, and look once more: chains may have come before the driver could see that. */
static enum ph_look arm(struct ph_queue *queue)
{
    if (queue->setup.event_idx)
        ph_store16(avail_event(queue), queue->state.next_avail);
    else
        ph_store16((uint16_t *)queue->used, 0);
    atomic_thread_fence(memory_order_seq_cst);
    return ph_queue_look(queue);
}

/* Consume a kick, and ask for no more while the ring is served. */
static void disarm(struct ph_queue *queue)
{
    uint64_t kicks;
    struct iovec room = {&kicks, sizeof(kicks)};
    /* The front-end shares the descriptor's flags, and could make a plain read(2) block. */
    ssize_t got = preadv2(queue->setup.kick_fd, &room, 1, -1, RWF_NOWAIT);

    (void)got;
    if (!queue->setup.event_idx)
        ph_store16((uint16_t *)queue->used, VRING_USED_F_NO_NOTIFY);
}

/* Notify, look for chains for some microseconds, then call `before_sleep` and sleep. */
enum ph_wait ph_queue_wait(struct ph_queue *queue, void (*before_sleep)(void *), void *context)
{
    struct pollfd fds[] = {
        {.fd = queue->setup.kick_fd, .events = POLLIN},
        {.fd = queue->setup.stop_fd, .events = POLLIN},
        {.fd = queue->wake_fd, .events = POLLIN},
    };
    enum ph_look look;

    ph_queue_set_awake(queue, true);
    if (queue->state.unsignalled)
        ph_queue_notify(queue);
    look = spin(queue);
    if (look == PH_LOOK_NOTHING && !ph_queue_is_stopped(queue))
        look = arm(queue);
    if (look != PH_LOOK_NOTHING)
        return look == PH_LOOK_PYTHON ? PH_WAIT_PYTHON : PH_WAIT_CHAIN;
    before_sleep(context);
    ph_queue_set_awake(queue, false);
    while (!ph_queue_is_stopped(queue) && poll(fds, 3, -1) < 0 && errno == EINTR)
        continue;
    ph_queue_set_awake(queue, true);
    if (ph_queue_is_stopped(queue))
        return PH_WAIT_STOPPED;
    disarm(queue);
    return fds[2].revents ? PH_WAIT_WOKEN : PH_WAIT_CHAIN;
}

/* Notify, look at the descriptor for some microseconds if that may pay off, then sleep. */
static enum ph_wait wait_for(struct ph_queue *queue, int fd, short events, bool spins)
{
    struct pollfd fds[] = {
        {.fd = fd, .events = events},
        {.fd = queue->setup.stop_fd, .events = POLLIN},
        {.fd = queue->wake_fd, .events = POLLIN},
    };

    ph_queue_set_awake(queue, true);
    if (queue->state.unsignalled)
        ph_queue_notify(queue);
    if (!spins || !spin_for(queue, fds, 3)) {
        ph_queue_set_awake(queue, false);
        while (!ph_queue_is_stopped(queue) && poll(fds, 3, -1) < 0 && errno == EINTR)
            continue;
        ph_queue_set_awake(queue, true);
    }
    if (ph_queue_is_stopped(queue))
        return PH_WAIT_STOPPED;
    return fds[2].revents ? PH_WAIT_WOKEN : PH_WAIT_READY;
}

enum ph_wait ph_queue_wait_for(struct ph_queue *queue, int fd, short events)
{
    return wait_for(queue, fd, events, true);
}

enum ph_wait ph_queue_sleep_for(struct ph_queue *queue, int fd, short events)
{
    return wait_for(queue, fd, events, false);
}

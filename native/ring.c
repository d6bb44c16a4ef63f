#include "ring.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* As in queue.py, chain.py and pool.py, where they are explained. */
enum {
    SPIN_NS = 50000,
    SPIN_MIN_NS = 1000,
    BATCH_REQUESTS = 8,
    BATCH_BYTES = 1 << 20,
    SHORT_BYTES = 32768,
    MIN_INDIRECT_LIMIT = 1024,
    SLOT_BYTES = 2048,
};
#define MAX_CHAIN_BYTES 0xffffffffu
#define DESC_BYTES sizeof(struct vring_desc)

/* How many queues of this process are at work, or look around for some. */
static atomic_uint awake;

struct ph_ring {
    struct ph_ring_setup setup;
    struct ph_ring_state state;
    uint16_t *avail; /* flags, idx, ring[size], used_event */
    uint8_t *used;   /* flags, idx, {id, len} ring[size], avail_event */
    uint16_t head;
    int wake_fd;
    uint64_t high;
    uint64_t taken_bytes; /* in the buffers of the latest chain */
    struct iovec *iov;
    pthread_mutex_t call_mutex;
    atomic_bool stopped;
    atomic_bool closed;
    bool is_awake;
};

static void set_awake(struct ph_ring *ring, bool is_awake)
{
    if (is_awake && !ring->is_awake)
        atomic_fetch_add_explicit(&awake, 1, memory_order_relaxed);
    else if (!is_awake && ring->is_awake)
        atomic_fetch_sub_explicit(&awake, 1, memory_order_relaxed);
    ring->is_awake = is_awake;
}

struct ph_ring *ph_ring_new(const struct ph_ring_setup *setup)
{
    uint32_t size = setup->size;
    uint32_t indirect = size > MIN_INDIRECT_LIMIT ? size : MIN_INDIRECT_LIMIT;
    struct ph_ring *ring = calloc(1, sizeof(*ring));

    if (!ring)
        return NULL;
    /* A chain may begin in the ring and end in an indirect table. */
    ring->iov = calloc(size + indirect, sizeof(*ring->iov));
    if (!ring->iov || pthread_mutex_init(&ring->call_mutex, NULL)) {
        free(ring->iov);
        free(ring);
        return NULL;
    }
    ring->setup = *setup;
    ring->avail = setup->avail;
    ring->used = setup->used;
    ring->wake_fd = -1;
    ring->high = setup->counters->highest_slot * SLOT_BYTES;
    return ring;
}

void ph_ring_free(struct ph_ring *ring)
{
    set_awake(ring, false);
    pthread_mutex_destroy(&ring->call_mutex);
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
    pthread_mutex_lock(&ring->call_mutex);
    ring->setup.call_fd = call_fd;
    pthread_mutex_unlock(&ring->call_mutex);
}

/* A thread that is stuck in a request may return later: it touches neither ring nor descriptor. */
void ph_ring_close(struct ph_ring *ring)
{
    pthread_mutex_lock(&ring->call_mutex);
    atomic_store(&ring->closed, true);
    pthread_mutex_unlock(&ring->call_mutex);
}

void ph_ring_set_wake(struct ph_ring *ring, int wake_fd)
{
    ring->wake_fd = wake_fd;
}

static uint16_t load16(const uint16_t *field)
{
    return le16toh(__atomic_load_n(field, __ATOMIC_RELAXED));
}

static void store16(uint16_t *field, uint16_t value)
{
    __atomic_store_n(field, htole16(value), __ATOMIC_RELAXED);
}

static uint16_t *used_event(struct ph_ring *ring)
{
    return &ring->avail[2 + ring->setup.size];
}

static uint16_t *avail_event(struct ph_ring *ring)
{
    return (uint16_t *)(ring->used + 4 + 8 * (size_t)ring->setup.size);
}

/* Where [gpa, gpa + length) is in this process; NULL when the device may not reach all of it. */
static uint8_t *find(const struct ph_ring *ring, uint64_t gpa, uint32_t length)
{
    for (uint32_t i = 0; i < ring->setup.span_count; i++) {
        const struct ph_span *span = &ring->setup.spans[i];
        uint64_t offset = gpa - span->gpa;

        if (gpa >= span->gpa && offset <= span->size_bytes && length <= span->size_bytes - offset)
            return span->address + offset;
    }
    return NULL;
}

/* As find, of what is going to be used: counts how high in the pool that is. */
static uint8_t *reach(struct ph_ring *ring, uint64_t gpa, uint32_t length)
{
    uint8_t *address = find(ring, gpa, length);

    if (address && ring->setup.counts_slots &&
        gpa + length - ring->setup.spans[0].gpa > ring->high) {
        ring->high = gpa + length - ring->setup.spans[0].gpa;
        ring->setup.counters->highest_slot = (ring->high + SLOT_BYTES - 1) / SLOT_BYTES;
    }
    return address;
}

static struct vring_desc read_desc(const uint8_t *table, uint32_t index)
{
    struct vring_desc desc;

    memcpy(&desc, table + index * DESC_BYTES, sizeof(desc));
    /* The copy is what is checked and what is used: it must not be read a second time. */
    __asm__ volatile("" ::: "memory");
    desc.addr = le64toh(desc.addr);
    desc.len = le32toh(desc.len);
    desc.flags = le16toh(desc.flags);
    desc.next = le16toh(desc.next);
    return desc;
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

static void end_readable(struct ph_chain *chain, uint32_t count, uint64_t bytes)
{
    chain->readable_count = count;
    chain->readable_bytes = bytes;
}

/* Python gives a system call the buffers as they come: more than IOV_MAX are its to refuse. */
static bool follow(struct ph_ring *ring, struct ph_chain *chain)
{
    const struct ph_ring_setup *setup = &ring->setup;
    const uint8_t *table = setup->desc;
    uint32_t size = setup->size, limit = size, index = ring->head, steps = 0, count = 0;
    uint32_t most = (size > MIN_INDIRECT_LIMIT ? size : MIN_INDIRECT_LIMIT) * DESC_BYTES;
    uint32_t pieces = 0;
    uint64_t bytes = 0;
    bool nested = false, writing = false;
    struct iovec *iov = ring->iov;

    for (;;) {
        struct vring_desc desc;
        uint8_t *address;

        if (index >= size || ++steps > limit)
            return false;
        desc = read_desc(table, index);
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            if (nested || desc.flags & VRING_DESC_F_NEXT || !setup->indirect)
                return false;
            if (!desc.len || desc.len % DESC_BYTES || desc.len > most)
                return false;
            table = reach(ring, desc.addr, desc.len);
            if (!table)
                return false;
            size = limit = desc.len / DESC_BYTES;
            nested = true;
            index = steps = 0;
            continue;
        }
        address = reach(ring, desc.addr, desc.len);
        if (!desc.len || !address)
            return false;
        if (desc.flags & VRING_DESC_F_WRITE && !writing) {
            if (pieces > IOV_MAX)
                return false;
            end_readable(chain, count, bytes);
            pieces = 0;
            writing = true;
        } else if (writing && !(desc.flags & VRING_DESC_F_WRITE)) {
            return false;
        }
        bytes += desc.len;
        if (pieces++ && (uint8_t *)iov[count - 1].iov_base + iov[count - 1].iov_len == address)
            iov[count - 1].iov_len += desc.len;
        else
            iov[count++] = (struct iovec){address, desc.len};
        if (!(desc.flags & VRING_DESC_F_NEXT))
            break;
        index = desc.next;
    }
    if (pieces > IOV_MAX || bytes > MAX_CHAIN_BYTES)
        return false;
    if (!writing)
        end_readable(chain, count, bytes);
    chain->readable = iov;
    chain->writable = iov + chain->readable_count;
    chain->writable_count = count - chain->readable_count;
    chain->writable_bytes = bytes - chain->readable_bytes;
    return true;
}

/* Where the chain `ahead` places on begins, if the driver has made it available; else NULL. */
static const uint8_t *begins(const struct ph_ring *ring, uint16_t ahead)
{
    uint16_t place = (uint16_t)(ring->state.next_avail + ahead);
    uint32_t head;

    if ((uint16_t)(ring->state.seen_avail - ring->state.next_avail) <= ahead)
        return NULL;
    head = load16(&ring->avail[2 + (place & (ring->setup.size - 1))]);
    return head < ring->setup.size ? (uint8_t *)ring->setup.desc + head * DESC_BYTES : NULL;
}

static void prefetch_what(const struct ph_ring *ring, const struct vring_desc *desc)
{
    const uint8_t *address = find(ring, desc->addr, desc->len);

    if (address) {
        __builtin_prefetch(address);
        __builtin_prefetch(address + 64);
    }
}

/*
 * The driver has written the next chains on another processor: have them under way meanwhile, one
 * step of each at a time. What is read here only says where to look; it is read again to be used.
 */
static void prefetch_ahead(const struct ph_ring *ring)
{
    const uint8_t *at = begins(ring, 3), *table;
    struct vring_desc desc;

    if (at)
        __builtin_prefetch(at);
    at = begins(ring, 2);
    if (at) {
        desc = read_desc(at, 0);
        prefetch_what(ring, &desc); /* an indirect table */
    }
    at = begins(ring, 1);
    if (!at)
        return;
    desc = read_desc(at, 0);
    table = desc.flags & VRING_DESC_F_INDIRECT ? find(ring, desc.addr, desc.len) : NULL;
    if (table && desc.len >= DESC_BYTES) {
        desc = read_desc(table, 0);
        prefetch_what(ring, &desc); /* the request */
    }
}

/* Take the next chain, which `ph_ring_look` has seen; false leaves it for Python. */
bool ph_ring_take(struct ph_ring *ring, struct ph_chain *chain)
{
    prefetch_ahead(ring);
    ring->head = load16(&ring->avail[2 + (ring->state.next_avail & (ring->setup.size - 1))]);
    if (!follow(ring, chain))
        return false;
    ring->state.next_avail++;
    ring->taken_bytes = chain->readable_bytes + chain->writable_bytes;
    ring->setup.counters->bytes_in += chain->readable_bytes;
    return true;
}

/* Undo the latest take: Python serves this chain. */
void ph_ring_put_back(struct ph_ring *ring, const struct ph_chain *chain)
{
    ring->state.next_avail--;
    ring->setup.counters->bytes_in -= chain->readable_bytes;
}

/*
 * The driver takes as long to wake up as some short requests take to be served: what is left when
 * it is notified should keep the queue busy until there are more. Python's queue does without:
 * waking the driver takes as long as a whole request there.
 */
static bool is_running_low(const struct ph_ring *ring)
{
    uint16_t waiting = (uint16_t)(ring->state.seen_avail - ring->state.next_avail);

    return ring->state.unsignalled > 1 && waiting <= 3 * ring->state.unsignalled &&
           ring->taken_bytes <= SHORT_BYTES;
}

/* Give the chain that was taken last back, and notify the driver now and then. */
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
    if (state->unsignalled >= BATCH_REQUESTS || state->unsignalled_bytes >= BATCH_BYTES ||
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
    pthread_mutex_lock(&ring->call_mutex);
    if (!atomic_load(&ring->closed)) {
        /* The used index must be visible before the driver's wish is read (section 2.7.7.2). */
        atomic_thread_fence(memory_order_seq_cst);
        if (ring->setup.event_idx) {
            wanted = state->signal_due || vring_need_event(load16(used_event(ring)),
                                                           state->next_used, state->signalled_used);
            state->signalled_used = state->next_used;
            state->signal_due = 0;
        } else {
            wanted = !(load16(&ring->avail[0]) & VRING_AVAIL_F_NO_INTERRUPT);
        }
        if (wanted)
            call_fd = ring->setup.call_fd;
    }
    pthread_mutex_unlock(&ring->call_mutex);
    /* The front-end could make the write block, so the mutex is not held. */
    if (call_fd >= 0) {
        uint64_t one = 1;
        ssize_t sent = write(call_fd, &one, sizeof(one));

        (void)sent; /* a full counter is a pending signal */
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Another queue may wait for this processor; without one, giving it up would only cost time. */
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

/* Look around for chains; longer when that has paid off lately. */
static enum ph_look spin(struct ph_ring *ring)
{
    uint64_t end = now_ns() + ring->state.spin_ns;

    do {
        enum ph_look look = ph_ring_look(ring);

        if (look != PH_LOOK_NOTHING) {
            ring->state.spin_ns = SPIN_NS;
            return look;
        }
        relax();
    } while (!ph_ring_is_stopped(ring) && now_ns() < end);
    ring->state.spin_ns /= 2;
    if (ring->state.spin_ns < SPIN_MIN_NS)
        ring->state.spin_ns = SPIN_MIN_NS;
    return PH_LOOK_NOTHING;
}

/* Ask for a kick, and look once more: chains may have come before the driver could see that. */
static enum ph_look arm(struct ph_ring *ring)
{
    if (ring->setup.event_idx)
        store16(avail_event(ring), ring->state.next_avail);
    else
        store16((uint16_t *)ring->used, 0);
    atomic_thread_fence(memory_order_seq_cst);
    return ph_ring_look(ring);
}

/* Take note of a kick, and ask for no more while the ring is served. */
static void disarm(struct ph_ring *ring)
{
    uint64_t kicks;
    struct iovec room = {&kicks, sizeof(kicks)};
    /* The front-end shares the descriptor's flags and could make a mere read(2) block. */
    ssize_t got = preadv2(ring->setup.kick_fd, &room, 1, -1, RWF_NOWAIT);

    (void)got;
    if (!ring->setup.event_idx)
        store16((uint16_t *)ring->used, VRING_USED_F_NO_NOTIFY);
}

/* Notify, look around for some microseconds, then call `before_sleep` and sleep. */
enum ph_wait ph_ring_wait(struct ph_ring *ring, void (*before_sleep)(void *), void *context)
{
    struct pollfd fds[] = {
        {.fd = ring->setup.kick_fd, .events = POLLIN},
        {.fd = ring->setup.stop_fd, .events = POLLIN},
        {.fd = ring->wake_fd, .events = POLLIN},
    };
    enum ph_look look;

    set_awake(ring, true);
    if (ring->state.unsignalled)
        ph_ring_notify(ring);
    look = spin(ring);
    if (look == PH_LOOK_NOTHING && !ph_ring_is_stopped(ring))
        look = arm(ring);
    if (look != PH_LOOK_NOTHING)
        return look == PH_LOOK_PYTHON ? PH_WAIT_PYTHON : PH_WAIT_CHAIN;
    before_sleep(context);
    set_awake(ring, false);
    while (!ph_ring_is_stopped(ring) && poll(fds, 3, -1) < 0 && errno == EINTR)
        continue;
    set_awake(ring, true);
    if (ph_ring_is_stopped(ring))
        return PH_WAIT_STOPPED;
    disarm(ring);
    return fds[2].revents ? PH_WAIT_WOKEN : PH_WAIT_CHAIN;
}

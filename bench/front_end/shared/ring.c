/* The driver's side of one split virtqueue (VIRTIO 1.2, section 2.7), as drivers/virtio of Linux
 * does it.
 *
 * Owns descriptors, indexes and notifications of one ring, used by one thread at a time. Must not
 * know what a chain carries. Fields are little-endian; so is every machine that this runs on.
 */
#include "ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "process.h"

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4 };
enum { AVAIL_F_NO_INTERRUPT = 1, USED_F_NO_NOTIFY = 1 };

struct desc {
    uint64_t gpa;
    uint32_t bytes;
    uint16_t flags, next;
};
struct avail {
    uint16_t flags;
    _Atomic uint16_t index;
    uint16_t ring[];
};
struct used_elem {
    uint32_t head, bytes;
};
struct used {
    _Atomic uint16_t flags;
    _Atomic uint16_t index;
    struct used_elem ring[];
};

static struct desc *desc_of(const struct ring *ring)
{
    return (struct desc *)(ring->ram->base + ring->at_desc);
}

static struct avail *avail_of(const struct ring *ring)
{
    return (struct avail *)(ring->ram->base + ring->at_avail);
}

static struct used *used_of(const struct ring *ring)
{
    return (struct used *)(ring->ram->base + ring->at_used);
}

static _Atomic uint16_t *used_event(const struct ring *ring)
{
    return (_Atomic uint16_t *)&avail_of(ring)->ring[ring->size];
}

static _Atomic uint16_t *avail_event(const struct ring *ring)
{
    return (_Atomic uint16_t *)&used_of(ring)->ring[ring->size];
}

uint64_t ring_table_bytes(void)
{
    return MAX_DESCRIPTORS * sizeof(struct desc);
}

void ring_make(struct ring *ring, struct ram *ram, unsigned index, unsigned size, uint64_t features)
{
    *ring = (struct ring){
        .ram = ram,
        .index = index,
        .size = size,
        .free_count = (uint16_t)size,
        .indirect = features & F_INDIRECT_DESC,
        .event_idx = features & F_EVENT_IDX,
        .kick_fd = eventfd(0, EFD_CLOEXEC),
        .call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .at_tables = calloc(size, sizeof *ring->at_tables),
        .owners = calloc(size, sizeof *ring->owners),
        .next = calloc(size, sizeof *ring->next),
    };
    if (ring->kick_fd < 0 || ring->call_fd < 0 || !ring->at_tables || !ring->owners || !ring->next)
        die("no ring: %m");
    ring->at_desc = ram_take(ram, 16ull * size, PAGE_BYTES);
    ring->at_avail = ram_take(ram, 6 + 2ull * size, PAGE_BYTES);
    ring->at_used = ram_take(ram, 6 + 8ull * size, PAGE_BYTES);
    for (unsigned i = 0; i < size; i++)
        ring->next[i] = (uint16_t)(i + 1);
    ring_hush(ring);
}

static void fill(struct desc *desc, const struct chain *chain, unsigned i)
{
    unsigned count = chain->readable + chain->writable;

    desc->gpa = RAM_GPA + chain->buffers[i].at;
    desc->bytes = chain->buffers[i].bytes;
    desc->flags =
        (uint16_t)((i + 1 < count ? DESC_F_NEXT : 0) | (i >= chain->readable ? DESC_F_WRITE : 0));
}

static void kick_if_wanted(struct ring *ring, uint16_t old, uint16_t new)
{
    bool wanted;

    atomic_thread_fence(memory_order_seq_cst);
    if (ring->event_idx) {
        uint16_t event = atomic_load_explicit(avail_event(ring), memory_order_relaxed);

        wanted = (uint16_t)(new - event - 1) < (uint16_t)(new - old);
    } else {
        wanted =
            !(atomic_load_explicit(&used_of(ring)->flags, memory_order_relaxed) & USED_F_NO_NOTIFY);
    }
    if (wanted) {
        uint64_t one = 1;

        ring->kicks++;
        if (write(ring->kick_fd, &one, sizeof one) < 0)
            die("cannot kick ring %u: %m", ring->index);
    }
}

/* Make a chain available and kick when the device wants it; false when the ring has no room now. */
bool ring_add(struct ring *ring, const struct chain *chain, void *owner)
{
    unsigned count = chain->readable + chain->writable;
    bool indirect = ring->indirect && count > 1; /* as Linux does: virtqueue_use_indirect() */
    unsigned needed = indirect ? 1 : count;
    uint16_t head = ring->free_head, last = head;
    struct avail *avail = avail_of(ring);
    struct desc *descs = desc_of(ring);

    if (count > MAX_DESCRIPTORS)
        die("a chain of %u descriptors; there is room for %u", count, MAX_DESCRIPTORS);
    if (ring->free_count < needed)
        return false;
    if (indirect) {
        struct desc *table;

        if (!ring->at_tables[head])
            ring->at_tables[head] = ram_take(ring->ram, ring_table_bytes(), SLOT_BYTES);
        table = (struct desc *)(ring->ram->base + ring->at_tables[head]);
        for (unsigned i = 0; i < count; i++) {
            fill(&table[i], chain, i);
            table[i].next = (uint16_t)(i + 1);
        }
        descs[head] = (struct desc){RAM_GPA + ring->at_tables[head],
                                    count * (uint32_t)sizeof(struct desc), DESC_F_INDIRECT, 0};
    } else {
        uint16_t at = head;

        for (unsigned i = 0; i < count; i++) {
            fill(&descs[at], chain, i);
            descs[at].next = ring->next[at];
            last = at;
            at = ring->next[at];
        }
    }
    ring->free_head = ring->next[last];
    ring->free_count = (uint16_t)(ring->free_count - needed);
    ring->owners[head] = owner;
    avail->ring[ring->avail_index & (ring->size - 1)] = head;
    ring->avail_index++;
    atomic_store_explicit(&avail->index, ring->avail_index, memory_order_release);
    kick_if_wanted(ring, (uint16_t)(ring->avail_index - 1), ring->avail_index);
    return true;
}

static void release_chain(struct ring *ring, uint16_t head)
{
    struct desc *descs = desc_of(ring);
    uint16_t last = head;
    unsigned count = 1;

    for (; descs[last].flags & DESC_F_NEXT; count++)
        last = ring->next[last];
    ring->next[last] = ring->free_head;
    ring->free_head = head;
    ring->free_count = (uint16_t)(ring->free_count + count);
}

bool ring_has_used(const struct ring *ring)
{
    return atomic_load_explicit(&used_of(ring)->index, memory_order_acquire) != ring->last_used;
}

/* Take back one chain that the device has used; NULL when there is none. */
void *ring_reap(struct ring *ring, uint32_t *written)
{
    struct used *used = used_of(ring);
    struct used_elem elem;
    void *owner;

    if (!ring_has_used(ring))
        return NULL;
    elem = used->ring[ring->last_used & (ring->size - 1)];
    if (elem.head >= ring->size || !(owner = ring->owners[elem.head]))
        die("ring %u: the device returned chain %u, which it does not have", ring->index,
            elem.head);
    ring->last_used++;
    ring->owners[elem.head] = NULL;
    release_chain(ring, (uint16_t)elem.head);
    if (ring->event_idx)
        ring_hush(ring);
    *written = elem.bytes;
    return owner;
}

/* Disable interrupts: the driver is awake. */
void ring_hush(struct ring *ring)
{
    if (ring->event_idx)
        atomic_store_explicit(used_event(ring), (uint16_t)(ring->last_used - 1),
                              memory_order_relaxed);
    else
        avail_of(ring)->flags = AVAIL_F_NO_INTERRUPT;
}

/* Enable an interrupt at the next used chain; return false when a used chain is there already. */
bool ring_arm(struct ring *ring)
{
    if (ring->event_idx)
        atomic_store_explicit(used_event(ring), ring->last_used, memory_order_relaxed);
    else
        avail_of(ring)->flags = 0;
    atomic_thread_fence(memory_order_seq_cst);
    return !ring_has_used(ring);
}

void ring_took_interrupt(struct ring *ring)
{
    uint64_t count;

    if (read(ring->call_fd, &count, sizeof count) == sizeof count)
        ring->interrupts++;
    else if (errno != EAGAIN)
        die("cannot read the interrupt of ring %u: %m", ring->index);
}

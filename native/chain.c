/*
 * Follows descriptor chains: turns what a driver has put into the ring into buffers.
 */
#include <limits.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "queue_private.h"

#define DESC_BYTES sizeof(struct vring_desc)

/* Returns where [gpa, gpa + length) is; NULL if the device may not reach all of it. */
static uint8_t *find(const struct ph_queue *queue, uint64_t gpa, uint32_t length)
{
    for (uint32_t i = 0; i < queue->setup.span_count; i++) {
        const struct ph_span *span = &queue->setup.spans[i];
        uint64_t offset = gpa - span->gpa;

        if (gpa >= span->gpa && offset <= span->size_bytes && length <= span->size_bytes - offset)
            return span->address + offset;
    }
    return NULL;
}

/* Like find, for memory that will be used: also notes the highest slot of the pool in use. */
static uint8_t *reach(struct ph_queue *queue, uint64_t gpa, uint32_t length)
{
    uint8_t *address = find(queue, gpa, length);

    if (address && queue->setup.counts_slots &&
        gpa + length - queue->setup.spans[0].gpa > queue->high) {
        queue->high = gpa + length - queue->setup.spans[0].gpa;
        queue->setup.counters->highest_slot = (queue->high + PH_SLOT_BYTES - 1) / PH_SLOT_BYTES;
    }
    return address;
}

static struct vring_desc read_desc(const uint8_t *table, uint32_t index)
{
    struct vring_desc desc;

    memcpy(&desc, table + index * DESC_BYTES, sizeof(desc));
    /* The guest may change the original, so only the copy is checked and used. */
    __asm__ volatile("" ::: "memory");
    desc.addr = le64toh(desc.addr);
    desc.len = le32toh(desc.len);
    desc.flags = le16toh(desc.flags);
    desc.next = le16toh(desc.next);
    return desc;
}

static void end_readable(struct ph_chain *chain, uint32_t count, uint64_t bytes)
{
    chain->readable_count = count;
    chain->readable_bytes = bytes;
}

/*
 * Collect the buffers of the chain that begins at queue->head; false where it breaks a rule. More
 * than IOV_MAX descriptors of one direction are left to Python, which refuses them.
 */
static inline bool follow(struct ph_queue *queue, struct iovec *iov, struct ph_chain *chain)
{
    const struct ph_queue_setup *setup = &queue->setup;
    const uint8_t *table = setup->desc;
    uint32_t size = setup->size, limit = size, index = queue->head, steps = 0, count = 0;
    uint32_t most = (size > PH_MIN_INDIRECT_LIMIT ? size : PH_MIN_INDIRECT_LIMIT) * DESC_BYTES;
    uint32_t pieces = 0;
    uint64_t bytes = 0;
    bool nested = false, writing = false;

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
            table = reach(queue, desc.addr, desc.len);
            if (!table)
                return false;
            size = limit = desc.len / DESC_BYTES;
            nested = true;
            index = steps = 0;
            continue;
        }
        address = reach(queue, desc.addr, desc.len);
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
    if (pieces > IOV_MAX || bytes > PH_MAX_CHAIN_BYTES)
        return false;
    if (!writing)
        end_readable(chain, count, bytes);
    chain->readable = iov;
    chain->writable = iov + chain->readable_count;
    chain->writable_count = count - chain->readable_count;
    chain->writable_bytes = bytes - chain->readable_bytes;
    return true;
}

/* Find the head of the chain `ahead` places on; false when the driver has made none available. */
static bool find_head(const struct ph_queue *queue, uint16_t ahead, uint16_t *head)
{
    uint16_t place = (uint16_t)(queue->state.next_avail + ahead);

    if ((uint16_t)(queue->state.seen_avail - queue->state.next_avail) <= ahead)
        return false;
    *head = ph_load16(&queue->avail[2 + (place & (queue->setup.size - 1))]);
    return *head < queue->setup.size;
}

static void prefetch_what(const struct ph_queue *queue, const struct vring_desc *desc)
{
    const uint8_t *address = find(queue, desc->addr, desc->len);

    if (address) {
        __builtin_prefetch(address);
        __builtin_prefetch(address + 64);
    }
}

/*
 * Prefetch the next chains, which the driver has written on another processor, one step of each at
 * a time. What is read here only says what to prefetch; it is read again to be used.
 */
static void prefetch_ahead(const struct ph_queue *queue)
{
    const uint8_t *descs = queue->setup.desc, *table;
    struct vring_desc desc;
    uint16_t head;

    if (find_head(queue, 3, &head))
        __builtin_prefetch(descs + head * DESC_BYTES);
    if (find_head(queue, 2, &head)) {
        desc = read_desc(descs, head);
        prefetch_what(queue, &desc); /* an indirect table */
    }
    if (!find_head(queue, 1, &head))
        return;
    desc = read_desc(descs, head);
    table = desc.flags & VRING_DESC_F_INDIRECT ? find(queue, desc.addr, desc.len) : NULL;
    if (table && desc.len >= DESC_BYTES) {
        desc = read_desc(table, 0);
        prefetch_what(queue, &desc); /* the request */
    }
}

inline bool ph_queue_take_into(struct ph_queue *queue, struct iovec *buffers,
                               struct ph_chain *chain)
{
    prefetch_ahead(queue);
    queue->head = ph_load16(&queue->avail[2 + (queue->state.next_avail & (queue->setup.size - 1))]);
    if (!follow(queue, buffers, chain))
        return false;
    queue->state.next_avail++;
    queue->taken_bytes = chain->readable_bytes + chain->writable_bytes;
    queue->setup.counters->bytes_in += chain->readable_bytes;
    return true;
}

/* Take the next chain, which `ph_queue_look` has seen; false leaves it in the ring for Python. */
bool ph_queue_take(struct ph_queue *queue, struct ph_chain *chain)
{
    return ph_queue_take_into(queue, queue->iov, chain);
}

/* Undo the latest take, so that Python serves this chain. */
void ph_queue_put_back(struct ph_queue *queue, const struct ph_chain *chain)
{
    queue->state.next_avail--;
    queue->setup.counters->bytes_in -= chain->readable_bytes;
}

/* One virtio-fs device: attached as QEMU attaches it, its file system initialised as Linux does.
 *
 * Owns the rings, the buffers and what is looked up before a run. Must not know what is timed.
 */
#include "device.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "process.h"
#include "waiting.h"

enum { FORGETS_IN_A_BATCH = 100, VERIFIED_BLOCKS = 2000 };

void file_name(char *name, unsigned number)
{
    snprintf(name, NAME_BYTES, "f%06u", number);
}

/* Ask on the first request queue and wait; used while no worker runs on the device. */
struct reply device_ask(struct device *device, uint32_t opcode, uint64_t node, const void *args,
                        uint32_t in_args, uint32_t out_args, uint32_t data_bytes)
{
    struct ring *ring = &device->queues[0].ring;
    struct request *request = &device->control;
    struct reply reply;
    uint32_t written;

    memcpy(request_args(request, &device->ram), args, in_args);
    request->data_bytes = data_bytes;
    request_send(ring, request, opcode, node, in_args, out_args, data_bytes ? DATA_OUT : NO_DATA);
    await_used(&ring, 1, device->options->polling);
    if (ring_reap(ring, &written) != request)
        die("%s: the device replied to a request that was not sent", device->connection.path);
    reply = request_reply(request, &device->ram, written);
    if (reply.error)
        die("%s: opcode %u fails: %s", device->connection.path, opcode, strerror(reply.error));
    return reply;
}

static uint64_t look_up(struct device *device, uint64_t parent, const char *name)
{
    const struct fuse_entry_out *entry =
        device_ask(device, FUSE_LOOKUP, parent, name, (uint32_t)strlen(name) + 1, sizeof *entry, 0)
            .args;

    return entry->nodeid;
}

/* Take back the requests that the device has finished; with `wait`, wait for one. */
static void reap_forgets(struct device *device, bool wait)
{
    struct ring *ring = &device->high_priority;
    struct request *request;
    uint32_t written;

    if (wait)
        await_used(&ring, 1, device->options->polling);
    while ((request = ring_reap(ring, &written)))
        device->free_forgets[device->free_forget_count++] = request;
}

static void forget_some(struct device *device, const uint64_t *nodes, unsigned count)
{
    struct {
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one[FORGETS_IN_A_BATCH];
    } *batch;
    struct request *request;

    reap_forgets(device, device->free_forget_count == 0);
    request = device->free_forgets[--device->free_forget_count];
    batch = request_args(request, &device->ram);
    if (count == 1) {
        struct fuse_forget_in *forget = (void *)batch;

        forget->nlookup = 1;
        request_send(&device->high_priority, request, FUSE_FORGET, nodes[0], sizeof *forget,
                     NO_REPLY, NO_DATA);
        return;
    }
    batch->in = (struct fuse_batch_forget_in){.count = count};
    for (unsigned i = 0; i < count; i++)
        batch->one[i] = (struct fuse_forget_one){nodes[i], 1};
    request_send(&device->high_priority, request, FUSE_BATCH_FORGET, 0,
                 (uint32_t)(sizeof batch->in + count * sizeof batch->one[0]), NO_REPLY, NO_DATA);
}

/* Forget one lookup of each node on the high-priority queue, as Linux does; from any thread. With
 * `wait`, return only when the device has forgotten them. */
void device_forget(struct device *device, const uint64_t *nodes, unsigned count, bool wait)
{
    pthread_mutex_lock(&device->forget_mutex);
    for (unsigned done = 0; done < count; done += FORGETS_IN_A_BATCH) {
        unsigned left = count - done;

        forget_some(device, nodes + done, left < FORGETS_IN_A_BATCH ? left : FORGETS_IN_A_BATCH);
    }
    while (wait && device->free_forget_count < MAX_FORGETS)
        reap_forgets(device, true);
    pthread_mutex_unlock(&device->forget_mutex);
}

static void initialise(struct device *device)
{
    struct fuse_init_in init = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = 1 << 20,
        .flags = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS |
                 FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |
                 FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT,
    };
    const struct fuse_init_out *out =
        device_ask(device, FUSE_INIT, 0, &init, sizeof init, sizeof *out, 0).args;

    if (out->major != FUSE_KERNEL_VERSION || out->max_write < PAGE_BYTES)
        die("%s: speaks FUSE %u.%u and takes %u bytes", device->connection.path, out->major,
            out->minor, out->max_write);
    device->minor = out->minor;
    device->max_write_bytes = out->max_write;
}

/* Connect, set all rings up and send INIT. */
void device_attach(struct device *device, const struct options *options, unsigned number)
{
    struct connection *connection = &device->connection;
    uint64_t begin_ns;

    *device = (struct device){.options = options, .number = number};
    pthread_mutex_init(&device->forget_mutex, NULL);
    ram_make(&device->ram, options->pool_bytes);
    begin_ns = now_ns();
    connection_open(connection, options->sockets[number],
                    (F_INDIRECT_DESC | F_EVENT_IDX) & ~options->without_features);
    if (options->queues + 1 > connection->queues)
        die("%s: the device has %llu queues; %u request queues and one more are needed",
            connection->path, (unsigned long long)connection->queues, options->queues);
    ring_make(&device->high_priority, &device->ram, 0, 2 * MAX_FORGETS, connection->features);
    for (unsigned i = 0; i < options->queues; i++)
        ring_make(&device->queues[i].ring, &device->ram, i + 1, options->ring_size,
                  connection->features);
    request_make(&device->control, &device->ram, 1);
    for (unsigned i = 0; i < MAX_FORGETS; i++) {
        request_make(&device->forgets[i], &device->ram, 2 + i);
        device->free_forgets[device->free_forget_count++] = &device->forgets[i];
    }
    connection_attach(connection, &device->ram);
    connection_start_ring(connection, &device->ram, &device->high_priority);
    for (unsigned i = 0; i < options->queues; i++)
        connection_start_ring(connection, &device->ram, &device->queues[i].ring);
    initialise(device);
    device->attach_ns = now_ns() - begin_ns;
}

/* Place the data buffers of a queue: in one piece each, or page by page with no two side by side.
 */
static void place_buffers(struct queue *queue)
{
    const struct options *options = queue->device->options;
    struct ram *ram = &queue->device->ram;
    uint32_t piece = options->scattered ? PAGE_BYTES : queue->device->control.page_bytes;
    uint64_t step = options->scattered ? 2 * PAGE_BYTES : piece;
    uint64_t at, count;

    queue->pages_each = options->block_bytes / piece;
    queue->buffer_count = options->depth;
    if (options->span_bytes / options->block_bytes > queue->buffer_count)
        queue->buffer_count = (unsigned)(options->span_bytes / options->block_bytes);
    count = (uint64_t)queue->buffer_count * queue->pages_each;
    queue->pages = allocate(count, sizeof *queue->pages);
    queue->free_buffers = allocate(queue->buffer_count, sizeof *queue->free_buffers);
    at = ram_take(ram, count * step, PAGE_BYTES);
    ram_touch(ram, at, count * step);
    for (uint64_t i = 0; i < count; i++)
        queue->pages[i] = at + i * step;
    for (uint64_t left = count; options->scattered && left > 1; left--) {
        uint64_t other = random_next(&queue->random) % left, kept = queue->pages[left - 1];

        queue->pages[left - 1] = queue->pages[other];
        queue->pages[other] = kept;
    }
    for (unsigned i = 0; i < queue->buffer_count; i++)
        queue->free_buffers[i] = i;
    queue->free_count = queue->buffer_count;
}

static void prepare_queue(struct device *device, unsigned index)
{
    const struct options *options = device->options;
    struct queue *queue = &device->queues[index];

    queue->device = device;
    queue->random.state = options->seed + 1000 * index + 1000000ull * device->number;
    queue->position = random_next(&queue->random);
    if (options->operation <= OP_WRITE)
        place_buffers(queue);
    if (options->operation == OP_WRITE)
        queue->written = allocate(options->working_set_bytes / options->block_bytes, 1);
    queue->slots = allocate(options->depth, sizeof *queue->slots);
    for (unsigned i = 0; i < options->depth; i++) {
        struct slot *slot = &queue->slots[i];

        slot->queue = queue;
        slot->requests = allocate(device->parts, sizeof *slot->requests);
        snprintf(slot->name, sizeof slot->name, "new-%llx-%u-%u-%u",
                 (unsigned long long)options->seed, device->number, index, i);
        for (unsigned part = 0; part < device->parts; part++) {
            request_make(&slot->requests[part], &device->ram,
                         2 + MAX_FORGETS + (index * MAX_DEPTH + i) * 64ull + part);
            slot->requests[part].slot = slot;
            slot->requests[part].page_bytes =
                options->scattered ? PAGE_BYTES : device->control.page_bytes;
        }
    }
}

/* Open what the operation works on, and lay out the queues' buffers. */
void device_prepare(struct device *device)
{
    const struct options *options = device->options;
    uint32_t part = device->max_write_bytes < options->block_bytes ? device->max_write_bytes
                                                                   : options->block_bytes;

    device->parts = options->operation <= OP_WRITE ? options->block_bytes / part : 1;
    device->control.page_bytes = part;
    device->control_pages = allocate(1, sizeof *device->control_pages);
    device->control_pages[0] = ram_take(&device->ram, part, PAGE_BYTES);
    device->control.pages = device->control_pages;
    if (options->operation <= OP_WRITE) {
        struct fuse_open_in open = {.flags = O_RDWR};

        device->file_node = look_up(device, FUSE_ROOT_ID, options->file);
        device->file_fh =
            ((const struct fuse_open_out *)device_ask(device, FUSE_OPEN, device->file_node, &open,
                                                      sizeof open, sizeof(struct fuse_open_out), 0)
                 .args)
                ->fh;
    } else if (options->operation != OP_ATTACH) {
        device->directory_node = look_up(device, FUSE_ROOT_ID, options->directory);
    }
    if ((options->operation >= OP_GETATTR && options->operation <= OP_OPEN) ||
        options->operation == OP_WALK) {
        device->nodes = allocate(options->files, sizeof *device->nodes);
        for (unsigned i = 0; i < options->files; i++) {
            char name[NAME_BYTES];

            file_name(name, i);
            device->nodes[i] = look_up(device, device->directory_node, name);
        }
    }
    for (unsigned i = 0; i < options->queues; i++)
        prepare_queue(device, i);
}

void device_look_again(struct device *device)
{
    struct fuse_getattr_in getattr = {0};

    for (unsigned i = 0; i < device->options->files; i++) {
        const struct fuse_attr_out *out = device_ask(device, FUSE_GETATTR, device->nodes[i],
                                                     &getattr, sizeof getattr, sizeof *out, 0)
                                              .args;

        if (out->attr.size != i)
            die("%s: file %u has %llu bytes", device->connection.path, i,
                (unsigned long long)out->attr.size);
    }
}

/* Check the first and the last page of some written blocks; return the number of pages checked. */
uint64_t device_verify_writes(struct device *device)
{
    const struct options *options = device->options;
    uint64_t blocks = options->working_set_bytes / options->block_bytes, seen = 0;

    for (uint64_t block = 0; block < blocks && seen < VERIFIED_BLOCKS; block++) {
        bool written = false;

        for (unsigned i = 0; i < options->queues; i++)
            written |= device->queues[i].written[block];
        for (unsigned end = 0; written && end < 2; end++, seen++) {
            uint64_t offset =
                block * options->block_bytes + end * (options->block_bytes - PAGE_BYTES);
            struct fuse_read_in read = {
                .fh = device->file_fh, .offset = offset, .size = PAGE_BYTES};
            struct reply reply =
                device_ask(device, FUSE_READ, device->file_node, &read, sizeof read, 0, PAGE_BYTES);

            if (reply.bytes != PAGE_BYTES ||
                !page_has_stamp(device->ram.base + device->control_pages[0],
                                page_stamp(options->seed, offset / PAGE_BYTES), false))
                die("%s: the data written at offset %llu was lost", device->connection.path,
                    (unsigned long long)offset);
        }
    }
    return seen;
}

/* Operations, each a sequence of requests: the first request, the request after each reply, and the
 * checks of replies.
 *
 * Must not know that there are many operations at once; engine.c does.
 */
#include "workload.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>

#include "pattern.h"
#include "process.h"

static void send(struct slot *slot, uint32_t opcode, uint64_t node, const void *args,
                 uint32_t in_args, uint32_t out_args)
{
    struct queue *queue = slot->queue;

    memcpy(request_args(slot->requests, &queue->device->ram), args, in_args);
    slot->pending = 1;
    request_send(&queue->ring, slot->requests, opcode, node, in_args, out_args, NO_DATA);
}

static void send_name(struct slot *slot, uint32_t opcode, uint64_t parent, const char *name,
                      uint32_t out_args)
{
    send(slot, opcode, parent, name, (uint32_t)strlen(name) + 1, out_args);
}

static void send_release(struct slot *slot)
{
    struct fuse_release_in release = {.fh = slot->fh, .flags = O_RDWR};

    send(slot, FUSE_RELEASE, slot->node, &release, sizeof release, 0);
}

/* Read or write one block, in as many requests as the device's max_write makes necessary. */
static void begin_block(struct queue *queue, struct slot *slot)
{
    struct device *device = queue->device;
    const struct options *options = device->options;
    bool writes = options->operation == OP_WRITE;
    uint64_t blocks = options->working_set_bytes / options->block_bytes;
    uint64_t block =
        (options->sequential ? queue->position++ : random_next(&queue->random)) % blocks;
    const uint64_t *pages;

    slot->choice = block;
    slot->buffer = queue->free_buffers[queue->first_free];
    queue->first_free = (queue->first_free + 1) % queue->buffer_count;
    queue->free_count--;
    pages = queue->pages + (uint64_t)slot->buffer * queue->pages_each;
    slot->pending = device->parts;
    for (unsigned part = 0; part < device->parts; part++) {
        struct request *request = &slot->requests[part];

        request->data_bytes = options->block_bytes / device->parts;
        request->pages = pages + part * (queue->pages_each / device->parts);
        request->offset = block * options->block_bytes + part * (uint64_t)request->data_bytes;
        if (writes) {
            struct fuse_write_in *args = request_args(request, &device->ram);

            for (uint32_t done = 0; done < request->data_bytes; done += PAGE_BYTES)
                stamp_page(device->ram.base + request->pages[done / request->page_bytes] +
                               done % request->page_bytes,
                           page_stamp(options->seed, (request->offset + done) / PAGE_BYTES));
            *args = (struct fuse_write_in){.fh = device->file_fh,
                                           .offset = request->offset,
                                           .size = request->data_bytes,
                                           .flags = O_RDWR};
            request_send(&queue->ring, request, FUSE_WRITE, device->file_node, sizeof *args,
                         sizeof(struct fuse_write_out), DATA_IN);
        } else {
            struct fuse_read_in *args = request_args(request, &device->ram);

            *args = (struct fuse_read_in){.fh = device->file_fh,
                                          .offset = request->offset,
                                          .size = request->data_bytes,
                                          .flags = O_RDWR};
            request_send(&queue->ring, request, FUSE_READ, device->file_node, sizeof *args, 0,
                         DATA_OUT);
        }
    }
}

void operation_begin(struct queue *queue, struct slot *slot)
{
    struct device *device = queue->device;
    const struct options *options = device->options;
    struct fuse_getattr_in getattr = {0};
    struct fuse_open_in open = {.flags = O_RDWR};
    struct {
        struct fuse_create_in in;
        char name[NAME_BYTES];
    } create;

    queue->in_flight++;
    slot->start_ns = now_ns();
    slot->state = 0;
    if (options->operation <= OP_WRITE) {
        begin_block(queue, slot);
        return;
    }
    if (options->operation == OP_CREATE) {
        create.in = (struct fuse_create_in){.flags = O_RDWR | O_CREAT | O_EXCL, .mode = 0100644};
        strcpy(create.name, slot->name);
        send(slot, FUSE_CREATE, device->directory_node, &create,
             (uint32_t)(sizeof create.in + strlen(create.name) + 1),
             sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out));
        return;
    }
    slot->choice = random_next(&queue->random) % options->files;
    slot->node = device->nodes[slot->choice];
    if (options->operation == OP_GETATTR) {
        send(slot, FUSE_GETATTR, slot->node, &getattr, sizeof getattr,
             sizeof(struct fuse_attr_out));
    } else if (options->operation == OP_OPEN) {
        send(slot, FUSE_OPEN, slot->node, &open, sizeof open, sizeof(struct fuse_open_out));
    } else {
        char name[NAME_BYTES];

        file_name(name, (unsigned)slot->choice);
        send_name(slot, FUSE_LOOKUP, device->directory_node, name, sizeof(struct fuse_entry_out));
    }
}

static void need(bool right, const struct request *request, const char *what)
{
    if (!right)
        die("%s: opcode %u: %s", request->slot->queue->device->connection.path, request->opcode,
            what);
}

static void check_block(struct worker *worker, const struct request *request, struct reply reply)
{
    struct queue *queue = request->slot->queue;
    struct device *device = queue->device;

    if (request->opcode == FUSE_WRITE) {
        need(((const struct fuse_write_out *)reply.args)->size == request->data_bytes, request,
             "a short write");
        queue->written[request->slot->choice] = 1;
        return;
    }
    need(reply.bytes == request->data_bytes, request, "a short read");
    /* Check all of each page before the clock runs, and its ends while the clock runs. */
    for (uint32_t done = 0; done < request->data_bytes; done += PAGE_BYTES) {
        const uint8_t *page = device->ram.base + request->pages[done / request->page_bytes] +
                              done % request->page_bytes;

        need(page_has_stamp(
                 page, page_stamp(device->options->seed, (request->offset + done) / PAGE_BYTES),
                 worker->run->phase == PHASE_WARM),
             request, "wrong data");
        worker->checked_pages++;
    }
}

static bool create_goes_on(struct slot *slot, const struct reply *reply)
{
    struct device *device = slot->queue->device;
    const struct fuse_entry_out *entry = reply->args;

    switch (slot->state++) {
    case 0:
        slot->node = entry->nodeid;
        slot->fh = ((const struct fuse_open_out *)(entry + 1))->fh;
        send_release(slot);
        return true;
    case 1:
        send_name(slot, FUSE_UNLINK, device->directory_node, slot->name, 0);
        return true;
    default:
        device_forget(device, &slot->node, 1, false);
        return false;
    }
}

/* Check a reply, and send what follows it; returns whether the operation goes on. */
bool operation_goes_on(struct worker *worker, struct request *request, struct reply reply)
{
    struct slot *slot = request->slot;
    struct queue *queue = slot->queue;

    if (reply.error)
        need(false, request, strerror(reply.error));
    if (--slot->pending > 0 && request->opcode != FUSE_READ && request->opcode != FUSE_WRITE)
        need(false, request, "more replies than requests");
    switch (request->opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
        check_block(worker, request, reply);
        if (slot->pending > 0)
            return true;
        queue->free_buffers[(queue->first_free + queue->free_count++) % queue->buffer_count] =
            slot->buffer;
        return false;
    case FUSE_GETATTR:
        need(((const struct fuse_attr_out *)reply.args)->attr.size == slot->choice, request,
             "attributes of another file");
        return false;
    case FUSE_LOOKUP:
        need(((const struct fuse_entry_out *)reply.args)->nodeid == slot->node, request,
             "another node");
        return false;
    case FUSE_OPEN:
        slot->fh = ((const struct fuse_open_out *)reply.args)->fh;
        send_release(slot);
        return true;
    default:
        return worker->run->options->operation == OP_CREATE && create_goes_on(slot, &reply);
    }
}

/* List the whole directory, as a guest without any of it in its cache, and forget its nodes. */
void list_directory(struct worker *worker, struct device *device, bool timed)
{
    const struct options *options = device->options;
    struct fuse_open_in open = {0};
    struct fuse_read_in read = {.size = options->block_bytes};
    struct fuse_release_in release;
    uint64_t begin_ns = now_ns(), entries = 0, nodes = 0;

    read.fh = ((const struct fuse_open_out *)device_ask(device, FUSE_OPENDIR,
                                                        device->directory_node, &open, sizeof open,
                                                        sizeof(struct fuse_open_out), 0)
                   .args)
                  ->fh;
    for (;;) {
        struct reply reply = device_ask(device, FUSE_READDIRPLUS, device->directory_node, &read,
                                        sizeof read, 0, options->block_bytes);
        const uint8_t *data = device->ram.base + device->control_pages[0];
        const struct fuse_direntplus *entry;

        if (reply.bytes == 0)
            break;
        for (uint32_t at = 0; at < reply.bytes; at += (uint32_t)FUSE_DIRENTPLUS_SIZE(entry)) {
            entry = (const void *)(data + at);
            read.offset = entry->dirent.off;
            if (entry->entry_out.nodeid && nodes < options->files)
                worker->listed[nodes++] = entry->entry_out.nodeid;
            entries++;
        }
    }
    release = (struct fuse_release_in){.fh = read.fh};
    device_ask(device, FUSE_RELEASEDIR, device->directory_node, &release, sizeof release, 0, 0);
    if (timed) {
        uint64_t ns = now_ns() - begin_ns;

        histogram_add(&worker->histogram, ns);
        worker->busy_ns += ns;
        worker->ops++;
        worker->entries += entries;
    }
    /* The listing has "." and ".." too, with or without nodes. */
    if (entries != options->files + 2 || nodes != options->files)
        die("%s: %llu entries and %llu nodes of a directory of %u files", device->connection.path,
            (unsigned long long)entries, (unsigned long long)nodes, options->files);
    device_forget(device, worker->listed, (unsigned)nodes, true);
}

/* FUSE requests as fs/fuse/virtio_fs.c lays them out: header, arguments, pages; out header,
 * arguments, pages. Each part has a slot of its own in the pool, where a bounced mapping would put
 * it.
 *
 * Owns layout and headers of a request. Must not know the purpose of a request.
 */
#include "requests.h"

#include <linux/fuse.h>
#include <string.h>

#include "process.h"

/* `number` is unique among the requests of a device. */
void request_make(struct request *request, struct ram *ram, uint64_t number)
{
    *request = (struct request){
        .unique = number << 40,
        .at_in_header = ram_take(ram, SLOT_BYTES, SLOT_BYTES),
        .at_in_args = ram_take(ram, SLOT_BYTES, SLOT_BYTES),
        .at_out_header = ram_take(ram, SLOT_BYTES, SLOT_BYTES),
        .at_out_args = ram_take(ram, SLOT_BYTES, SLOT_BYTES),
    };
}

void *request_args(const struct request *request, const struct ram *ram)
{
    return ram->base + request->at_in_args;
}

static void put(struct chain *chain, unsigned *count, uint64_t at, uint32_t bytes)
{
    chain->buffers[chain->readable + chain->writable] = (struct buffer){at, bytes};
    ++*count;
}

static void put_pages(struct chain *chain, unsigned *count, const struct request *request)
{
    uint32_t left = request->data_bytes;

    for (uint32_t i = 0; left > 0; i++) {
        uint32_t bytes = left < request->page_bytes ? left : request->page_bytes;

        put(chain, count, request->pages[i], bytes);
        left -= bytes;
    }
}

/* Send a request whose arguments are in place; `in_args` and `out_args` are their lengths. */
void request_send(struct ring *ring, struct request *request, uint32_t opcode, uint64_t node,
                  uint32_t in_args, uint32_t out_args, enum direction direction)
{
    struct fuse_in_header *header = (void *)(ring->ram->base + request->at_in_header);
    struct fuse_out_header *answer = (void *)(ring->ram->base + request->at_out_header);
    struct chain chain;

    chain.readable = chain.writable = 0;
    request->opcode = opcode;
    request->unique += 2;
    *header = (struct fuse_in_header){
        .len =
            (uint32_t)sizeof *header + in_args + (direction == DATA_IN ? request->data_bytes : 0),
        .opcode = opcode,
        .unique = request->unique,
        .nodeid = node,
        .pid = 1,
    };
    *answer = (struct fuse_out_header){0};
    put(&chain, &chain.readable, request->at_in_header, sizeof *header);
    if (in_args)
        put(&chain, &chain.readable, request->at_in_args, in_args);
    if (direction == DATA_IN)
        put_pages(&chain, &chain.readable, request);
    if (out_args != NO_REPLY) {
        put(&chain, &chain.writable, request->at_out_header, sizeof *answer);
        if (out_args)
            put(&chain, &chain.writable, request->at_out_args, out_args);
        if (direction == DATA_OUT)
            put_pages(&chain, &chain.writable, request);
    }
    if (!ring_add(ring, &chain, request))
        die("ring %u has no room for the queue depth; give a larger --ring-size", ring->index);
}

/* Read the reply's header and check that it belongs to the request. */
struct reply request_reply(const struct request *request, const struct ram *ram, uint32_t written)
{
    const struct fuse_out_header *header = (const void *)(ram->base + request->at_out_header);

    if (written < sizeof *header || header->len > written || header->len < sizeof *header ||
        header->unique != request->unique)
        die("opcode %u: a reply of %u bytes with length %u, for request %llu instead of %llu",
            request->opcode, written, header->len, (unsigned long long)header->unique,
            (unsigned long long)request->unique);
    return (struct reply){.error = -header->error,
                          .bytes = header->len - (uint32_t)sizeof *header,
                          .args = ram->base + request->at_out_args};
}

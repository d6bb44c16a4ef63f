/*
 * Fuzz target: FUSE requests as they are served natively, native/fuse_request.c.
 *
 * The input is a stream of requests on one share. Each is either made of its parts, so that many
 * are lawful, or taken as it comes; it is cut into buffers anywhere, which lie alone in memory.
 */
#include "fuzz.h"

#include <linux/fuse.h>
#include <sanitizer/asan_interface.h>
#include <sys/uio.h>

#include "../fuse_request.h"
#include "share.h"

enum {
    MAX_REQUESTS = 64,
    MAX_BYTES = 4096 + 512,
    MAX_PIECES = 12,
    MAX_ROOM = 1 << 16,
    FILL = 0xa5,
    GUARD_BYTES = 64, /* after each buffer: the kernel's writes are not seen by ASan */
};

static const uint8_t OPCODES[] = {
    FUSE_LOOKUP, FUSE_FORGET,  FUSE_GETATTR,    FUSE_OPEN,    FUSE_READ,         FUSE_WRITE,
    FUSE_RELEASE, FUSE_FLUSH,  FUSE_OPENDIR,    FUSE_READDIR, FUSE_READDIRPLUS,  FUSE_RELEASEDIR,
    FUSE_CREATE, FUSE_UNLINK,  FUSE_BATCH_FORGET, FUSE_INIT,
};

/* One side of a chain. */
struct buffers {
    struct iovec pieces[MAX_PIECES];
    uint32_t count;
};

static struct ph_worker *worker;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    share_mount();
    worker = calloc(1, sizeof(*worker));
    HOLDS(worker && ph_worker_init(worker));
    return 0;
}

/* Cut `size` bytes where the input says: each piece is memory of its own. */
static void cut(struct input *input, uint8_t cuts, struct buffers *buffers, size_t size)
{
    buffers->count = 0;
    while (size) {
        size_t length = size;
        void *memory;

        if (cuts && buffers->count < MAX_PIECES - 1) {
            length = 1 + take8(input) % cuts;
            length = length < size ? length : size;
        }
        HOLDS((memory = malloc(length + GUARD_BYTES)));
        memset((uint8_t *)memory + length, FILL, GUARD_BYTES);
        ASAN_POISON_MEMORY_REGION((uint8_t *)memory + length, GUARD_BYTES);
        buffers->pieces[buffers->count++] = (struct iovec){memory, length};
        size -= length;
    }
}

static void fill(const struct buffers *buffers, const uint8_t *from)
{
    for (uint32_t i = 0; i < buffers->count; i++) {
        memcpy(buffers->pieces[i].iov_base, from, buffers->pieces[i].iov_len);
        from += buffers->pieces[i].iov_len;
    }
}

/* Put all pieces together again, and free them. */
static void collect(const struct buffers *buffers, uint8_t *to)
{
    for (uint32_t i = 0; i < buffers->count; i++) {
        size_t length = buffers->pieces[i].iov_len;
        uint8_t *memory = buffers->pieces[i].iov_base;

        ASAN_UNPOISON_MEMORY_REGION(memory + length, GUARD_BYTES);
        for (int at = 0; at < GUARD_BYTES; at++)
            HOLDS(memory[length + at] == FILL);
        memcpy(to, memory, length);
        to += length;
        free(memory);
    }
}

static size_t fixed_bytes(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_FORGET:
        return sizeof(struct fuse_forget_in);
    case FUSE_BATCH_FORGET:
        return sizeof(struct fuse_batch_forget_in);
    case FUSE_GETATTR:
        return sizeof(struct fuse_getattr_in);
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        return sizeof(struct fuse_open_in);
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        return sizeof(struct fuse_release_in);
    case FUSE_FLUSH:
        return sizeof(struct fuse_flush_in);
    case FUSE_CREATE:
        return sizeof(struct fuse_create_in);
    default:
        return 0;
    }
}

/* What matters of the fixed part of a body, from few bytes of the input. */
static void fill_fixed(struct input *input, uint32_t opcode, uint8_t *body, size_t rest)
{
    switch (opcode) {
    case FUSE_FORGET:
        *(uint8_t *)body = take8(input) % 4;
        break;
    case FUSE_BATCH_FORGET:
        ((struct fuse_batch_forget_in *)(void *)body)->count =
            (uint32_t)(rest / sizeof(struct fuse_forget_one));
        break;
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        uint8_t bits = take8(input);

        ((struct fuse_open_in *)(void *)body)->flags = (bits & 3u) | (bits & 0xfcu) << 6;
        break;
    }
    case FUSE_CREATE: {
        struct fuse_create_in *in = (void *)body;

        in->flags = take8(input) & 3u;
        in->mode = take16(input);
        break;
    }
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_FLUSH:
    case FUSE_GETATTR:
        body[opcode == FUSE_GETATTR ? 8 : 0] = take8(input) % 8; /* fh */
        break;
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
    case FUSE_WRITE: {
        struct fuse_write_in *in = (void *)body; /* begins as fuse_read_in does */

        in->fh = take8(input) % 8;
        in->offset = take16(input);
        in->size = opcode == FUSE_WRITE ? (uint32_t)rest : take16(input);
        if (opcode == FUSE_WRITE)
            in->write_flags = take8(input) & 7;
        break;
    }
    default:
        break;
    }
}

/* Write a request; its length. */
static size_t make_request(struct input *input, uint8_t flags, uint8_t *bytes)
{
    struct fuse_in_header header = {.unique = take32(input)};
    size_t fixed, rest, length;

    if (flags & 1) { /* as it comes */
        length = take16(input) % MAX_BYTES;
        take_bytes(input, bytes, length);
        if (flags & 2 && length >= sizeof(header)) {
            uint32_t told = (uint32_t)length;

            memcpy(bytes, &told, sizeof(told));
        }
        return length;
    }
    header.opcode = OPCODES[take8(input) % sizeof(OPCODES)];
    header.nodeid = take8(input) % 16;
    header.uid = flags & 4 ? 1000 : 0;
    header.gid = flags & 8 ? 1000 : 0;
    fixed = fixed_bytes(header.opcode);
    rest = flags & 16 ? take16(input) % (MAX_BYTES - 256) : take8(input);
    length = sizeof(header) + fixed + rest;
    header.len = (uint32_t)length;
    memcpy(bytes, &header, sizeof(header));
    memset(bytes + sizeof(header), 0, fixed);
    fill_fixed(input, header.opcode, bytes + sizeof(header), rest);
    take_bytes(input, bytes + sizeof(header) + fixed, rest);
    return length;
}

static void check_reply(const uint8_t *request, const uint8_t *replied, uint64_t room,
                        int64_t written)
{
    const struct fuse_in_header *header = (const void *)request;
    struct fuse_out_header out;

    for (uint64_t i = written == PH_COLD ? 0 : (uint64_t)written; i < room; i++)
        HOLDS(replied[i] == FILL);
    if (written == PH_COLD)
        return;
    if (header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET) {
        HOLDS(!written);
        return;
    }
    HOLDS(written >= (int64_t)sizeof(out) && (uint64_t)written <= room);
    memcpy(&out, replied, sizeof(out));
    HOLDS(out.len == written && out.unique == header->unique);
    HOLDS(!out.error || (out.error < 0 && out.error > -4096 && out.len == sizeof(out)));
}

static void serve(struct input *input, struct ph_fs *fs)
{
    static uint8_t filled[MAX_ROOM], replied[MAX_ROOM], asked[MAX_BYTES];
    static _Alignas(8) uint8_t request[MAX_BYTES];
    uint8_t flags = take8(input), cuts = take8(input);
    struct buffers readable, writable;
    struct ph_chain chain;
    int64_t written;

    memset(request, 0, sizeof(struct fuse_in_header));
    chain.readable_bytes = make_request(input, flags, request);
    chain.writable_bytes = flags & 32 ? take16(input) : take8(input) * 2u;
    cut(input, cuts & 0x7f, &readable, chain.readable_bytes);
    cut(input, cuts & 0x80 ? 64 : 0, &writable, chain.writable_bytes);
    fill(&readable, request);
    memset(filled, FILL, chain.writable_bytes);
    fill(&writable, filled);
    chain.readable = readable.pieces;
    chain.readable_count = readable.count;
    chain.writable = writable.pieces;
    chain.writable_count = writable.count;
    written = ph_fuse_serve(worker, fs, &chain);
    collect(&writable, replied);
    collect(&readable, asked);
    HOLDS(!memcmp(asked, request, chain.readable_bytes));
    check_reply(request, replied, chain.writable_bytes, written);
    HOLDS(ph_fs_node_count(fs) <= ph_fs_node_limit(fs));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t flags = take8(&input);
    struct ph_rules rules = {
        .uid = flags & 1 ? 7 : PH_KEEP_ID,
        .gid = flags & 1 ? 8 : PH_KEEP_ID,
        .keep_dir = 0170755,
        .keep_file = 0177777,
        .valid_s = 1,
        .read_only = flags >> 1 & 1,
        .cold = flags >> 2 & 1,
        .writeback = flags >> 4 & 1,
    };
    struct ph_fs *fs = share_open(&rules, flags >> 3 & 1);

    for (int i = 0; i < MAX_REQUESTS && input.size; i++)
        serve(&input, fs);
    ph_fs_release(fs);
    share_check_outside();
    share_check_descriptors();
    return 0;
}

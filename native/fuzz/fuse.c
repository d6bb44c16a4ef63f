/*
 * Fuzz target: FUSE requests as they are served natively, native/request.c and the operations.
 *
 * The input is a stream of requests on one share. Each is either made of its parts, so that many
 * are lawful, or taken as it comes; it is cut into buffers anywhere, each of which lies alone in
 * memory.
 */
#include "fuzz.h"

#include <sys/uio.h>

#include "../request.h"
#include "poison.h"
#include "requests.h"
#include "share.h"

enum {
    MAX_REQUESTS = 64,
    MAX_PIECES = 12,
    MAX_ROOM = 1 << 16,
    FILL = 0xa5,
    GUARD_BYTES = 64, /* after each buffer: ASan does not see what the kernel writes */
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
    HOLDS((worker = ph_worker_new(true)));
    return 0;
}

/* Cut `size` bytes where the input says; each piece gets memory of its own. */
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
        for (size_t at = 0; at < GUARD_BYTES; at++)
            HOLDS(memory[length + at] == FILL);
        memcpy(to, memory, length);
        to += length;
        free(memory);
    }
}

static void check_reply(const uint8_t *request, const uint8_t *replied, uint64_t room,
                        int64_t written)
{
    for (uint64_t i = written == PH_PYTHON ? 0 : (uint64_t)written; i < room; i++)
        HOLDS(replied[i] == FILL);
    if (written != PH_PYTHON)
        request_check_reply((const void *)request, replied, written, room);
}

static void serve(struct input *input, struct ph_mount *mount)
{
    static uint8_t filled[MAX_ROOM], replied[MAX_ROOM], asked[REQUEST_MAX_BYTES];
    static _Alignas(8) uint8_t request[REQUEST_MAX_BYTES];
    uint8_t flags = take8(input), cuts = take8(input);
    struct buffers readable, writable;
    struct ph_chain chain;
    int64_t written;

    memset(request, 0, sizeof(struct fuse_in_header));
    chain.readable_bytes = request_make(input, flags, request);
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
    written = ph_fuse_serve(worker, mount, &chain);
    collect(&writable, replied);
    collect(&readable, asked);
    HOLDS(!memcmp(asked, request, chain.readable_bytes));
    check_reply(request, replied, chain.writable_bytes, written);
    HOLDS(ph_mount_node_count(mount) <= ph_mount_node_limit(mount));
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
        .to_python = flags >> 2 & 1,
        .writeback = flags >> 4 & 1,
        .umask = flags >> 5 & 1,
        .acls = flags >> 6 & 1,
    };
    struct ph_mount *mount = share_open(&rules, flags >> 3 & 1);

    for (int i = 0; i < MAX_REQUESTS && input.size; i++)
        serve(&input, mount);
    ph_mount_release(mount);
    share_check_outside();
    share_check_descriptors();
    return 0;
}

/* The floor, which no device can beat: the same blocks, read from the file or copied from memory
 * straight into the buffers of the pool, without a ring in between.
 *
 * Must not know devices.
 */
#include "floor.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pattern.h"
#include "process.h"
#include "ram.h"

static void move_block(const struct options *options, int fd, const uint8_t *memory,
                       struct iovec *parts, unsigned count, uint64_t offset)
{
    ssize_t moved;

    if (options->target == TARGET_MEMORY) {
        for (unsigned i = 0; i < count; i++) {
            memcpy(parts[i].iov_base, memory + offset, parts[i].iov_len);
            offset += parts[i].iov_len;
        }
        return;
    }
    moved = options->operation == OP_WRITE ? pwritev(fd, parts, (int)count, (off_t)offset)
                                           : preadv(fd, parts, (int)count, (off_t)offset);
    if (moved != (ssize_t)options->block_bytes)
        die("%s: %zd of %u bytes at offset %llu: %m", options->file, moved, options->block_bytes,
            (unsigned long long)offset);
}

/* Run for the given time and leave the figures in `worker`. */
void floor_run(const struct options *options, struct worker *worker, double *seconds)
{
    uint32_t piece = options->scattered ? PAGE_BYTES : options->block_bytes;
    unsigned count = options->block_bytes / piece;
    /* Use as many buffers as `depth` requests would: a single one would stay in the cache. */
    struct iovec *buffers = allocate(count * options->depth, sizeof *buffers);
    uint64_t blocks = options->working_set_bytes / options->block_bytes, position, begin_ns, end_ns;
    uint64_t turn = 0;
    struct random random = {options->seed};
    uint8_t *memory = NULL;
    struct ram ram;
    int fd = -1;

    ram_make(&ram, options->pool_bytes);
    for (unsigned i = 0; i < count * options->depth; i++)
        buffers[i] = (struct iovec){ram.base + ram_take(&ram, 2 * piece, PAGE_BYTES), piece};
    if (options->target == TARGET_FILE && (fd = open(options->file, O_RDWR | O_CLOEXEC)) < 0)
        die("%s: %m", options->file);
    if (options->target == TARGET_MEMORY) {
        memory = allocate(options->working_set_bytes, 1);
        memset(memory, 1, options->working_set_bytes);
    }
    position = random_next(&random);
    begin_ns = now_ns() + (uint64_t)(options->warmup_s * 1e9);
    end_ns = begin_ns + (uint64_t)(options->seconds * 1e9);
    for (uint64_t start = now_ns(), now; start < end_ns; start = now) {
        uint64_t block = (options->sequential ? position++ : random_next(&random)) % blocks;
        uint64_t offset = block * options->block_bytes;
        struct iovec *parts = buffers + count * (turn++ % options->depth);

        move_block(options, fd, memory, parts, count, offset);
        if (fd >= 0 && options->operation == OP_READ &&
            !page_has_stamp(parts[0].iov_base, page_stamp(options->seed, offset / PAGE_BYTES),
                            false))
            die("%s: wrong data at offset %llu", options->file, (unsigned long long)offset);
        now = now_ns();
        if (start < begin_ns)
            continue;
        histogram_add(&worker->histogram, now - start);
        worker->ops++;
        worker->bytes += options->block_bytes;
    }
    *seconds = (double)(now_ns() - begin_ns) / 1e9;
    free(memory);
    free(buffers);
    ram_free(&ram);
}

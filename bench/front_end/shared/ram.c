/* Guest memory: a memfd with a pool in it.
 *
 * Owns the memory's layout. Must not know rings or requests.
 */
#include "ram.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "process.h"

void ram_make(struct ram *ram, uint64_t pool_bytes)
{
    ram->bytes = POOL_AT + pool_bytes;
    ram->fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (ram->fd < 0 || ftruncate(ram->fd, (off_t)ram->bytes) < 0)
        die("no guest memory of %llu bytes: %m", (unsigned long long)ram->bytes);
    ram->base = mmap(NULL, ram->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram->fd, 0);
    if (ram->base == MAP_FAILED)
        die("cannot map guest memory: %m");
    ram->pool_next = POOL_AT;
    ram->pool_end = POOL_AT + pool_bytes;
}

void ram_free(struct ram *ram)
{
    munmap(ram->base, ram->bytes);
    close(ram->fd);
}

/* Take a piece of the pool, for good. `align` is a power of two. */
uint64_t ram_take(struct ram *ram, uint64_t bytes, uint64_t align)
{
    uint64_t at = (ram->pool_next + align - 1) & ~(align - 1);

    if (at + bytes > ram->pool_end)
        die("the pool is full: %llu bytes more are needed; give a larger --pool-mib",
            (unsigned long long)bytes);
    ram->pool_next = at + bytes;
    return at;
}

/* Make the memory behind a range present, so that no run measures the kernel clearing pages. */
void ram_touch(struct ram *ram, uint64_t at, uint64_t bytes)
{
    memset(ram->base + at, 0, bytes);
}

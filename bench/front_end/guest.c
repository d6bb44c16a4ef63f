/* Guest memory: a memfd with a pool in it, and the pattern that data is known by.
 *
 * Owns the memory's layout. Must not know rings or requests.
 */
#include "front_end.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

/* Take a piece of the pool; it is never given back. `align` is a power of two. */
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

/* The number that a page of a file is known by (the finalizer of splitmix64). */
uint64_t page_stamp(uint64_t seed, uint64_t page)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + page + 1;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

enum { PAGE_WORDS = PAGE_BYTES / 8 };

/* Word i of a page is its stamp plus i. A write sets the ends only: filling would be measured too.
 */
void stamp_page(uint8_t *page, uint64_t stamp)
{
    uint64_t last = stamp + PAGE_WORDS - 1;

    memcpy(page, &stamp, 8);
    memcpy(page + PAGE_BYTES - 8, &last, 8);
}

bool page_has_stamp(const uint8_t *page, uint64_t stamp, bool whole)
{
    unsigned step = whole ? 1 : PAGE_WORDS - 1;

    for (unsigned i = 0; i < PAGE_WORDS; i += step) {
        uint64_t word;

        memcpy(&word, page + 8 * i, 8);
        if (word != stamp + i)
            return false;
    }
    return true;
}

/* splitmix64: good enough to choose offsets, and the same everywhere. */
uint64_t random_next(struct random *random)
{
    random->state += 0x9e3779b97f4a7c15ull;
    return page_stamp(0, random->state);
}

/* The pattern that identifies data, and random numbers that are the same everywhere. */
#include "pattern.h"

#include <string.h>

#include "ram.h"

/* Return the number that identifies a page of a file (the finalizer of splitmix64). */
uint64_t page_stamp(uint64_t seed, uint64_t page)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + page + 1;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

enum { PAGE_WORDS = PAGE_BYTES / 8 };

/* Word i of a page is its stamp plus i. A write sets only the ends, because filling the whole page
 * would be measured, too. */
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

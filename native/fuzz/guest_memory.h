/*
 * The memory of a fuzzed ring: its three parts, and the spans that buffers may be in.
 *
 * Every part lies alone before a page that cannot be touched, with poison in front of it. Must not
 * know what a ring means.
 */
#ifndef PORTHOLE_FUZZ_GUEST_MEMORY_H
#define PORTHOLE_FUZZ_GUEST_MEMORY_H

#include <stdbool.h>

#include "../queue.h"
#include "fuzz.h"

enum { MEMORY_SPANS = 3 };

enum memory_part {
    MEMORY_DESC,
    MEMORY_AVAIL,
    MEMORY_USED,
    MEMORY_SPAN,
    MEMORY_PARTS = MEMORY_SPAN + MEMORY_SPANS
};

/* A stretch of guest memory, of which only the end may be touched. */
struct part {
    uint8_t *pages;
    uint8_t *start;
    size_t size;
};

extern struct part parts[MEMORY_PARTS];
extern struct ph_span spans[MEMORY_SPANS];

/* Call once, first. */
void memory_make(void);
/* Lay out and fill a ring of this size, and the spans. */
void memory_lay_out(struct input *input, uint32_t size);
/* Check that all pieces are in the first `span_count` spans, and have so many bytes together. */
void memory_check_pieces(uint32_t span_count, const struct iovec *pieces, uint32_t count,
                         uint64_t bytes);

/* Remember the memory, to check later what was written; nothing where it changes by itself. */
#ifdef MUTATING
static inline void memory_remember(void)
{
}
static inline void memory_check(bool used_too)
{
    (void)used_too;
}
#else
void memory_remember(void);
/* Check that the device has written to the used ring alone; with `used_too`, not to that either. */
void memory_check(bool used_too);
#endif

#endif

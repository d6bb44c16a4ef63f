/*
 * What a fuzzed ring is in: its three parts and the spans that buffers may be in.
 *
 * Every part lies alone before a page that cannot be touched, with poison in front of it. Must not
 * know what a ring means.
 */
#ifndef PORTHOLE_FUZZ_GUEST_MEMORY_H
#define PORTHOLE_FUZZ_GUEST_MEMORY_H

#include <stdbool.h>

#include "../ring.h"
#include "fuzz.h"

enum { MEMORY_SPANS = 3 };

enum memory_part {
    MEMORY_DESC,
    MEMORY_AVAIL,
    MEMORY_USED,
    MEMORY_SPAN,
    MEMORY_PARTS = MEMORY_SPAN + MEMORY_SPANS
};

/* Memory of the guest that may be touched: the end of a stretch that otherwise may not. */
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
/* All pieces are in the first `span_count` spans, and as long as they say together. */
void memory_check_pieces(uint32_t span_count, const struct iovec *pieces, uint32_t count,
                         uint64_t bytes);

/* Where memory changes by itself nothing can be said of what it was. */
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
/* The device has written to nothing that it may not write to; `used_too`: nor to the used ring. */
void memory_check(bool used_too);
#endif

#endif

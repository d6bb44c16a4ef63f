/*
 * With MUTATING, a second thread writes into the guest's memory all the time while the device uses
 * it: what the device has checked must be what it uses, and it may read nothing twice. Without
 * MUTATING nothing happens here.
 *
 * Must not know what the memory means.
 */
#ifndef PORTHOLE_FUZZ_MUTATOR_H
#define PORTHOLE_FUZZ_MUTATOR_H

#include "fuzz.h"

/* Memory that the thread writes into. */
struct target {
    uint8_t *start;
    size_t size;
};

#ifdef MUTATING
enum { IS_MUTATING = 1 };
/* Write into up to 16 targets until mutator_end. */
void mutator_begin(const struct target *targets, size_t count, uint64_t seed);
void mutator_end(void);
#else
enum { IS_MUTATING = 0 };
static inline void mutator_begin(const struct target *targets, size_t count, uint64_t seed)
{
    (void)targets, (void)count, (void)seed;
}
static inline void mutator_end(void)
{
}
#endif

#endif

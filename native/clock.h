/*
 * The clock that waits are measured with.
 */
#ifndef PORTHOLE_CLOCK_H
#define PORTHOLE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t ph_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif

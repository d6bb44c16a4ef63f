/*
 * Waiting for something that the kernel is about to make. For jobs: it blocks.
 */
#ifndef MINI_INIT_WAITING_H
#define MINI_INIT_WAITING_H

#include <stdbool.h>
#include <stdint.h>

struct waiting {
    uint64_t end_ns; /* CLOCK_BOOTTIME */
};

void waiting_begin(struct waiting *waiting, uint32_t wait_ms);
/* Sleep a moment; false, at once, when the time is over. */
bool waiting_goes_on(const struct waiting *waiting);

#endif

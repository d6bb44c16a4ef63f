/*
 * Waits, in steps of 5 ms.
 */
#include <time.h>

#include "clock.h"
#include "waiting.h"

#define STEP_NS 5000000

void waiting_begin(struct waiting *waiting, uint32_t wait_ms)
{
    waiting->end_ns = boot_time_ns() + (uint64_t)wait_ms * 1000000u;
}

bool waiting_goes_on(const struct waiting *waiting)
{
    const struct timespec step = {.tv_nsec = STEP_NS};

    if (boot_time_ns() >= waiting->end_ns)
        return false;
    (void)nanosleep(&step, NULL);
    return true;
}

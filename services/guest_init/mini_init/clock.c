/*
 * Reads the clock.
 */
#include <time.h>

#include "clock.h"

uint64_t boot_time_ns(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/*
 * The clock of the guest.
 */
#ifndef MINI_INIT_CLOCK_H
#define MINI_INIT_CLOCK_H

#include <stdint.h>

/* The time of CLOCK_BOOTTIME, which counts from the start of the kernel. */
uint64_t boot_time_ns(void);

#endif

/* This process: its clocks, its memory, and its end with a message. Every part uses it.
 *
 * Must not know what is measured.
 */
#ifndef FRONT_END_PROCESS_H
#define FRONT_END_PROCESS_H

#include <stddef.h>
#include <stdint.h>

uint64_t now_ns(void);
void sleep_until(uint64_t ns); /* by the clock of now_ns */
/* CPU time of this process, and of other processes. */
double own_cpu_s(void);
double cpu_s_of(const int *pids, unsigned count);
/* Zeroed memory; the process ends when there is none. */
void *allocate(size_t count, size_t bytes);
/* End the process with a message. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

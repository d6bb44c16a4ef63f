/*
 * Guest memory whose pages are lost while it is mapped: a hole was punched into huge pages and none
 * is free, a file shrank, or a memory module failed.
 *
 * A touch of such a page is SIGBUS, which would end the process, and with it the devices of all
 * VMs. The handler puts zeros in the place of the whole mapping and marks it: the thread goes on
 * with zeros, and Python ends the device. Must not know what the memory is used for.
 */
#ifndef PORTHOLE_LOST_MEMORY_H
#define PORTHOLE_LOST_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

enum { PH_MAX_WATCHED = 1 << 16 };

/* Install the handler, once. `event_fd` is an eventfd that becomes readable with each loss. */
bool ph_lost_install(int event_fd);

/* From any thread; a mapping is watched from before it is touched until after. */
int ph_lost_watch(void *start, uint64_t size_bytes); /* a number; -1: too many are watched */
bool ph_lost_is(int number);
bool ph_lost_unwatch(int number); /* whether it was lost */

#endif

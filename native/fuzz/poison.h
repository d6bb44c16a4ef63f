/*
 * Poisoned memory: AddressSanitizer ends the program when it is touched.
 */
#ifndef PORTHOLE_FUZZ_POISON_H
#define PORTHOLE_FUZZ_POISON_H

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else /* the static analyser comes without */
#define ASAN_POISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
/* NOLINTNEXTLINE(bugprone-reserved-identifier) */
#define __asan_region_is_poisoned(start, size) ((void)(size), (start) ? NULL : (start))
#endif

#endif

/* The pattern that identifies data, and random numbers that are the same everywhere. */
#ifndef FRONT_END_PATTERN_H
#define FRONT_END_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

uint64_t page_stamp(uint64_t seed, uint64_t page);
void stamp_page(uint8_t *page, uint64_t stamp);
bool page_has_stamp(const uint8_t *page, uint64_t stamp, bool whole);

struct random {
    uint64_t state;
};
uint64_t random_next(struct random *random);

#endif

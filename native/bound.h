/*
 * How many nodes or open files one mount may have. The mounts of all guests share the memory and
 * the descriptors of the process, so no mount gets more than it leaves to the others.
 *
 * From any thread. Mounts that take at the same moment may together exceed what all may have, by
 * one for each thread. Must not know what is counted.
 */
#ifndef PORTHOLE_BOUND_H
#define PORTHOLE_BOUND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct ph_bound {
    uint64_t most;        /* of this mount */
    uint64_t most_of_all; /* of all mounts of the process */
    bool alone;           /* no other guest has mounts in the process: nothing is left to others */
    atomic_ullong count;
    atomic_ullong *count_of_all;
};

uint64_t ph_bound_count(const struct ph_bound *bound);
/* Returns how many the mount may have as things are; at least its count, or `most`. */
uint64_t ph_bound_limit(const struct ph_bound *bound);
bool ph_bound_has_room(const struct ph_bound *bound);
void ph_bound_add(struct ph_bound *bound);
void ph_bound_take(struct ph_bound *bound, uint64_t count);

#endif

#include "bound.h"

uint64_t ph_bound_count(const struct ph_bound *bound)
{
    return atomic_load_explicit(&bound->count, memory_order_relaxed);
}

uint64_t ph_bound_limit(const struct ph_bound *bound)
{
    uint64_t mine = ph_bound_count(bound), all = atomic_load(bound->count_of_all);
    uint64_t left = bound->most_of_all > all ? bound->most_of_all - all : 0, more = left;

    if (!bound->alone) /* as many as make what is left no less than what it has */
        more = left > mine ? (left - mine + 1) / 2 : 0;
    return bound->most < mine + more ? bound->most : mine + more;
}

bool ph_bound_has_room(const struct ph_bound *bound)
{
    return ph_bound_count(bound) < ph_bound_limit(bound);
}

void ph_bound_add(struct ph_bound *bound)
{
    atomic_fetch_add(&bound->count, 1);
    atomic_fetch_add(bound->count_of_all, 1);
}

void ph_bound_take(struct ph_bound *bound, uint64_t count)
{
    atomic_fetch_sub(&bound->count, count);
    atomic_fetch_sub(bound->count_of_all, count);
}

/* A histogram of times with 32 buckets to each power of two, so that a percentile is within 3 %.
 *
 * Must not know what is timed.
 */
#include "histogram.h"

enum { SUB_BITS = 5, SUB = 1 << SUB_BITS };

static unsigned bucket_of(uint64_t ns)
{
    unsigned exponent;

    if (ns < SUB)
        return (unsigned)ns;
    exponent = 63u - (unsigned)__builtin_clzll(ns);
    return (exponent - SUB_BITS + 1) * SUB + (unsigned)((ns >> (exponent - SUB_BITS)) & (SUB - 1));
}

/* The middle of a bucket. */
static uint64_t value_of(unsigned bucket)
{
    unsigned shift;

    if (bucket < 2 * SUB)
        return bucket;
    shift = bucket / SUB - 1;
    return ((uint64_t)(SUB + bucket % SUB) << shift) + (1ull << shift) / 2;
}

void histogram_add(struct histogram *h, uint64_t ns)
{
    h->counts[bucket_of(ns)]++;
    h->total++;
    h->sum_ns += (double)ns;
    if (ns > h->max_ns)
        h->max_ns = ns;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        into->counts[i] += from->counts[i];
    into->total += from->total;
    into->sum_ns += from->sum_ns;
    if (from->max_ns > into->max_ns)
        into->max_ns = from->max_ns;
}

uint64_t histogram_percentile(const struct histogram *h, double percent)
{
    uint64_t wanted = (uint64_t)((double)h->total * percent / 100.0), seen = 0;

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->counts[i];
        if (seen > wanted)
            return value_of(i);
    }
    return h->max_ns;
}

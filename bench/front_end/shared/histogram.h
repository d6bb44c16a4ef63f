/* A histogram of times, in which a percentile is within 3 %. */
#ifndef FRONT_END_HISTOGRAM_H
#define FRONT_END_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BUCKETS 2048 /* 32 to each power of two: within 3 % */

struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS], total, max_ns;
    double sum_ns;
};
void histogram_add(struct histogram *h, uint64_t ns);
void histogram_merge(struct histogram *into, const struct histogram *from);
uint64_t histogram_percentile(const struct histogram *h, double percent);

#endif

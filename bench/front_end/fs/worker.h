/* A run, and the measurements of one of its workers. */
#ifndef FRONT_END_WORKER_H
#define FRONT_END_WORKER_H

#include <stdatomic.h>
#include <stdint.h>

#include "histogram.h"
#include "options.h"

struct queue;

enum phase { PHASE_WARM, PHASE_TIMED, PHASE_OVER };

struct run {
    const struct options *options;
    _Atomic int phase;
    _Atomic int64_t budget; /* operations that may still begin, if their number is limited */
};

struct worker {
    struct run *run;
    struct queue **queues;
    unsigned queue_count;
    struct histogram histogram;
    uint64_t ops, bytes, entries, checked_pages, busy_ns;
    uint64_t *listed;
};

#endif

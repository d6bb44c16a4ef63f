/* Workers, which keep queues at their depth. */
#ifndef FRONT_END_ENGINE_H
#define FRONT_END_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device.h"
#include "histogram.h"
#include "options.h"
#include "ring.h"

enum phase { PHASE_WARM, PHASE_TIMED, PHASE_OVER };

struct run {
    const struct options *options;
    _Atomic int phase;
    _Atomic int64_t budget; /* operations that may still begin, when they are limited */
};

struct worker {
    struct run *run;
    struct queue **queues;
    unsigned queue_count;
    struct histogram histogram;
    uint64_t ops, bytes, entries, checked_pages, busy_ns;
    uint64_t *listed;
};

/* Wait until one of the rings has a used chain. */
void await_used(struct ring *const *rings, unsigned count, bool polling);
void *worker_run(void *argument); /* a struct worker */

#endif

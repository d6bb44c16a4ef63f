/* The floor, which no device can beat. */
#ifndef FRONT_END_FLOOR_H
#define FRONT_END_FLOOR_H

#include "options.h"
#include "worker.h"

/* Run for the given time and leave the figures in `worker`. */
void floor_run(const struct options *options, struct worker *worker, double *seconds);

#endif

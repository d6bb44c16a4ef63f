/* Workers, which keep queues at their depth. */
#ifndef FRONT_END_ENGINE_H
#define FRONT_END_ENGINE_H

/* Runs a struct worker until the run is over; for pthread_create. */
void *worker_run(void *argument);

#endif

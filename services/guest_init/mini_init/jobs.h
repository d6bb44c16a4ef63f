/*
 * Jobs: requests that may take long, each in a process of its own, so that a device that does not
 * answer holds up that request alone. Must not know what the requests are.
 */
#ifndef MINI_INIT_JOBS_H
#define MINI_INIT_JOBS_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#define JOB_LIMIT 32u
#define OUTCOME_TEXT_BYTES 400u

/* How a request went: an errno, 0 if it was carried out, and what failed. */
struct outcome {
    int error;
    char text[OUTCOME_TEXT_BYTES];
};

/* Return the outcome of a request that failed. */
struct outcome outcome_of(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Carry out a request in a process of its own; it is answered when that ends. */
void job_start(uint32_t request_id, struct outcome (*function)(const void *request),
               const void *request);
/* Write what to wait for, JOB_LIMIT at most; returns how many. */
unsigned jobs_poll(struct pollfd *waits);
/* Answer the requests of jobs that have ended. */
void jobs_turn(void);
/* Forget whose requests they are: the host has gone. */
void jobs_disown(void);

#endif

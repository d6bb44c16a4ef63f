/*
 * How fast the frames of one direction of an adapter may go: a token bucket for bytes and one for
 * packets, which all queues of that direction share. Any thread may call all of it.
 *
 * Owns the arithmetic, with the rules of devices/net/rates/limiter.py, and when the timer fires:
 * a queue that has to wait sleeps on it. Must not know frames or rings.
 */
#ifndef PORTHOLE_RATE_LIMIT_H
#define PORTHOLE_RATE_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

/* Tokens per second, 0: no limit; and how many there are at most. */
struct ph_rate {
    uint64_t per_second;
    uint64_t burst;
};

/* The bounds are those of rate_limit.py, so that no sum overflows. */
struct ph_rate_limit {
    struct ph_rate bytes;
    struct ph_rate packets;
};

/* What frames cost. */
struct ph_cost {
    uint64_t bytes;
    uint64_t packets;
};

struct ph_limiter;

struct ph_limiter *ph_limiter_new(int timer_fd); /* the caller owns it; NULL: no memory */
void ph_limiter_free(struct ph_limiter *limiter);
int ph_limiter_timer_fd(const struct ph_limiter *limiter);
/* Replace the limit; whoever waits looks again. */
void ph_limiter_set(struct ph_limiter *limiter, const struct ph_rate_limit *limit, uint64_t now_ns);
bool ph_limiter_is_set(const struct ph_limiter *limiter);
/* Whether a frame may go, after others that have not been charged. */
bool ph_limiter_admits(struct ph_limiter *limiter, uint64_t now_ns, const struct ph_cost *others);
void ph_limiter_charge(struct ph_limiter *limiter, uint64_t now_ns, const struct ph_cost *cost);
/* Have the timer fire when a frame may go; returns when that is. */
uint64_t ph_limiter_arm(struct ph_limiter *limiter, uint64_t now_ns);

#endif

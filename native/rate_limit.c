#include "rate_limit.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/timerfd.h>

#include "mutex.h"

/* A bucket counts billionths of a token: each nanosecond brings as many as a second brings tokens.
 */
enum { PARTS = 1000000000 };

struct bucket {
    struct ph_rate rate;
    int64_t parts; /* below 0: a debt, after a frame that cost more than there was */
};

struct ph_limiter {
    int timer_fd;
    atomic_bool is_limited; /* written with the mutex */
    struct ph_mutex mutex;
    uint64_t filled_ns PH_GUARDED_BY(mutex);
    struct bucket bytes PH_GUARDED_BY(mutex);
    struct bucket packets PH_GUARDED_BY(mutex);
};

static int64_t full(const struct bucket *bucket)
{
    return (int64_t)(bucket->rate.burst * PARTS);
}

static void fill(struct bucket *bucket, uint64_t elapsed_ns)
{
    uint64_t rate = bucket->rate.per_second;

    if (!rate)
        return;
    if (elapsed_ns > (uint64_t)(full(bucket) - bucket->parts) / rate)
        bucket->parts = full(bucket);
    else
        bucket->parts += (int64_t)(elapsed_ns * rate);
}

static void set(struct bucket *bucket, const struct ph_rate *rate)
{
    bool was_limited = bucket->rate.per_second;

    bucket->rate = *rate;
    if (!was_limited || bucket->parts > full(bucket))
        bucket->parts = full(bucket);
}

static bool admits(const struct bucket *bucket, uint64_t others)
{
    return !bucket->rate.per_second || bucket->parts > (int64_t)(others * PARTS);
}

static void charge(struct bucket *bucket, uint64_t cost)
{
    if (bucket->rate.per_second)
        bucket->parts -= (int64_t)(cost * PARTS);
}

/* How long until there is more than nothing in the bucket. */
static uint64_t wait_ns(const struct bucket *bucket)
{
    if (admits(bucket, 0))
        return 0;
    return (uint64_t)-bucket->parts / bucket->rate.per_second + 1;
}

static void fill_both(struct ph_limiter *limiter, uint64_t now_ns) PH_WITH(limiter->mutex)
{
    /* Another thread may have looked at the clock later, and come first. */
    uint64_t elapsed_ns = now_ns > limiter->filled_ns ? now_ns - limiter->filled_ns : 0;

    fill(&limiter->bytes, elapsed_ns);
    fill(&limiter->packets, elapsed_ns);
    limiter->filled_ns += elapsed_ns;
}

static void set_timer(const struct ph_limiter *limiter, uint64_t at_ns)
{
    struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(at_ns / PARTS), .tv_nsec = (long)(at_ns % PARTS)}};

    timerfd_settime(limiter->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

PH_ALONE struct ph_limiter *ph_limiter_new(int timer_fd)
{
    struct ph_limiter *limiter = calloc(1, sizeof(*limiter));

    if (limiter) {
        limiter->timer_fd = timer_fd;
        ph_mutex_init(&limiter->mutex);
    }
    return limiter;
}

void ph_limiter_free(struct ph_limiter *limiter)
{
    ph_mutex_destroy(&limiter->mutex);
    free(limiter);
}

int ph_limiter_timer_fd(const struct ph_limiter *limiter)
{
    return limiter->timer_fd;
}

void ph_limiter_set(struct ph_limiter *limiter, const struct ph_rate_limit *limit, uint64_t now_ns)
{
    ph_mutex_take(&limiter->mutex);
    fill_both(limiter, now_ns);
    set(&limiter->bytes, &limit->bytes);
    set(&limiter->packets, &limit->packets);
    atomic_store(&limiter->is_limited, limit->bytes.per_second || limit->packets.per_second);
    set_timer(limiter, 1); /* long ago; 0 would stop it */
    ph_mutex_let_go(&limiter->mutex);
}

bool ph_limiter_is_set(const struct ph_limiter *limiter)
{
    return atomic_load_explicit(&limiter->is_limited, memory_order_relaxed);
}

bool ph_limiter_admits(struct ph_limiter *limiter, uint64_t now_ns, const struct ph_cost *others)
{
    bool may;

    ph_mutex_take(&limiter->mutex);
    fill_both(limiter, now_ns);
    may = admits(&limiter->bytes, others->bytes) && admits(&limiter->packets, others->packets);
    ph_mutex_let_go(&limiter->mutex);
    return may;
}

void ph_limiter_charge(struct ph_limiter *limiter, uint64_t now_ns, const struct ph_cost *cost)
{
    ph_mutex_take(&limiter->mutex);
    fill_both(limiter, now_ns);
    charge(&limiter->bytes, cost->bytes);
    charge(&limiter->packets, cost->packets);
    ph_mutex_let_go(&limiter->mutex);
}

uint64_t ph_limiter_arm(struct ph_limiter *limiter, uint64_t now_ns)
{
    uint64_t for_bytes, for_packets, at_ns;

    ph_mutex_take(&limiter->mutex);
    fill_both(limiter, now_ns);
    for_bytes = wait_ns(&limiter->bytes);
    for_packets = wait_ns(&limiter->packets);
    at_ns = limiter->filled_ns + (for_bytes > for_packets ? for_bytes : for_packets);
    set_timer(limiter, at_ns ? at_ns : 1);
    ph_mutex_let_go(&limiter->mutex);
    return at_ns;
}

#include "net.h"

#include <poll.h>
#include <stdlib.h>

#include "clock.h"
#include "net_private.h"

struct ph_net *ph_net_new(const struct ph_net_setup *setup)
{
    struct ph_net *net = calloc(1, sizeof(*net));

    if (net)
        net->setup = *setup;
    return net;
}

void ph_net_free(struct ph_net *net)
{
    free(net);
}

struct ph_net_state *ph_net_state(struct ph_net *net)
{
    return &net->state;
}

static int outcome_of(enum ph_wait wait)
{
    switch (wait) {
    case PH_WAIT_STOPPED:
        return PH_OUTCOME_STOPPED;
    case PH_WAIT_WOKEN:
        return PH_OUTCOME_WOKEN;
    case PH_WAIT_PYTHON:
        return PH_OUTCOME_PYTHON;
    case PH_WAIT_CHAIN:
    case PH_WAIT_READY:
        break;
    }
    return PH_GO_ON;
}

static void nothing(void *context)
{
    (void)context;
}

int ph_net_wait_for_chains(struct ph_queue *queue)
{
    return outcome_of(ph_queue_wait(queue, nothing, NULL));
}

int ph_net_wait_for_fd(struct ph_queue *queue, const struct ph_net *net, short events)
{
    return outcome_of(ph_queue_wait_for(queue, net->setup.fd, events));
}

int ph_net_wait_for_tokens(struct ph_queue *queue, struct ph_limiter *limiter)
{
    static const struct ph_cost NOTHING;
    int outcome = PH_GO_ON;

    while (outcome == PH_GO_ON && !ph_net_admits(limiter, &NOTHING)) {
        ph_queue_counters(queue)->throttled++;
        ph_limiter_arm(limiter, ph_now_ns());
        outcome = outcome_of(ph_queue_sleep_for(queue, ph_limiter_timer_fd(limiter), POLLIN));
    }
    return outcome;
}

bool ph_net_admits(struct ph_limiter *limiter, const struct ph_cost *others)
{
    return !ph_limiter_is_set(limiter) || ph_limiter_admits(limiter, ph_now_ns(), others);
}

void ph_net_add_cost(struct ph_cost *cost, uint64_t frame_bytes)
{
    cost->bytes += frame_bytes < PH_MAX_FRAME_BYTES ? frame_bytes : PH_MAX_FRAME_BYTES;
    cost->packets++;
}

void ph_net_charge(struct ph_limiter *limiter, const struct ph_cost *cost)
{
    if (ph_limiter_is_set(limiter))
        ph_limiter_charge(limiter, ph_now_ns(), cost);
}

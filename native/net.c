#include "net.h"

#include <stdlib.h>

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

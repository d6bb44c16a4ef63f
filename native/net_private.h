/*
 * The interface between the parts of a queue pair: net.c, net_receive.c and net_transmit.c.
 */
#ifndef PORTHOLE_NET_PRIVATE_H
#define PORTHOLE_NET_PRIVATE_H

#include <limits.h>

#include "net.h"

struct ph_net {
    struct ph_net_setup setup;
    struct ph_net_state state;
    uint8_t overflow[PH_NET_HEADER_BYTES + PH_MAX_FRAME_BYTES]; /* of a frame that is received */
};

/* Beside those of enum ph_outcome: the loop goes on. */
enum { PH_GO_ON = 0 };

/* Wait for chains, or until the descriptor is ready; returns PH_GO_ON or an outcome. */
int ph_net_wait_for_chains(struct ph_queue *queue);
int ph_net_wait_for_fd(struct ph_queue *queue, const struct ph_net *net, short events);

/* Wait until a frame may go; the same results. */
int ph_net_wait_for_tokens(struct ph_queue *queue, struct ph_limiter *limiter);
/* Whether one more may go after those that have cost so much, which is charged later. */
bool ph_net_admits(struct ph_limiter *limiter, const struct ph_cost *others);
/* What a frame costs; one that is longer than any frame is dropped. */
void ph_net_add_cost(struct ph_cost *cost, uint64_t frame_bytes);
void ph_net_charge(struct ph_limiter *limiter, const struct ph_cost *cost);

#endif

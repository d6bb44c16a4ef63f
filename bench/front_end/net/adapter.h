/* One virtio-net device, attached, with its pairs of queues. */
#ifndef FRONT_END_ADAPTER_H
#define FRONT_END_ADAPTER_H

#include <stdbool.h>
#include <stdint.h>

#include "ram.h"
#include "ring.h"
#include "vhost_user.h"

#define RING_ENTRIES 256u
#define MAX_PAIRS 8u

struct options {
    const char *socket, *interface;
    bool no_offloads, polling; /* polling: the driver never sleeps */
    unsigned pairs;
};

struct traffic {
    uint64_t packets, bytes, dropped;
};

struct pair {
    uint8_t *base; /* of guest memory */
    struct ring receive, transmit;
    int tap_fd;
    bool polling;
    struct traffic received, sent;
    uint64_t at_received[RING_ENTRIES], at_sent[RING_ENTRIES]; /* buffers, in the pool */
};

struct adapter {
    struct connection connection;
    struct ram ram;
    unsigned count;
    struct pair pairs[MAX_PAIRS];
};

/* Attach the device and open the interface, with a queue of it for each pair. */
void adapter_attach(struct adapter *adapter, const struct options *options);
/* Move packets of a pair, for as long as the process lives; for pthread_create. */
void *pair_receive(void *pair);
void *pair_transmit(void *pair);

#endif

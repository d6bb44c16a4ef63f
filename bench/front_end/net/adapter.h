/* One virtio-net device, attached, with a pair of queues. */
#ifndef FRONT_END_ADAPTER_H
#define FRONT_END_ADAPTER_H

#include <stdbool.h>
#include <stdint.h>

#include "ram.h"
#include "ring.h"
#include "vhost_user.h"

#define RING_ENTRIES 256u

struct traffic {
    uint64_t packets, bytes, dropped;
};

struct adapter {
    struct connection connection;
    struct ram ram;
    struct ring receive, transmit;
    int tap_fd;
    struct traffic received, sent;
    uint64_t at_received[RING_ENTRIES], at_sent[RING_ENTRIES]; /* buffers, in the pool */
};

/* Attach the device and open the interface; with `offloads`, negotiate them. */
void adapter_attach(struct adapter *adapter, const char *socket, const char *tap, bool offloads);
/* Move packets, for as long as the process lives; for pthread_create. */
void *adapter_receive(void *adapter);
void *adapter_transmit(void *adapter);

#endif

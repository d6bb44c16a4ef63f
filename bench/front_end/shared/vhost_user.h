/* The front-end's side of vhost-user. */
#ifndef FRONT_END_VHOST_USER_H
#define FRONT_END_VHOST_USER_H

#include <stdbool.h>
#include <stdint.h>

#include "ram.h"

#define ANSWER_DEADLINE_NS 60000000000ull /* for a device, on the socket and in the rings */

struct connection {
    int fd;
    const char *path;
    bool reply_ack;
    uint64_t features, protocol_features;
    uint64_t queues;
};

struct ring;
void connection_open(struct connection *c, const char *path, uint64_t features);
void connection_attach(struct connection *c, const struct ram *ram);
void connection_start_ring(struct connection *c, const struct ram *ram, const struct ring *ring);

#endif

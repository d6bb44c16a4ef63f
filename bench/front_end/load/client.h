/* Clients that wait for each answer before they send the next request. */
#ifndef LOAD_CLIENT_H
#define LOAD_CLIENT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "histogram.h"

struct load {
    struct sockaddr_in address;
    bool http;       /* requests of HTTP instead of ECHO_BYTES */
    bool connecting; /* a connection for each request */
    unsigned connections;
    double warmup_s, seconds;
};

struct figures {
    struct histogram histogram; /* of one request, with its connection if it has one of its own */
    double seconds;
};

void load_run(const struct load *load, struct figures *figures);

#endif

/*
 * Network adapters: found by their hardware address, configured over rtnetlink.
 */
#ifndef MINI_INIT_NETWORK_H
#define MINI_INIT_NETWORK_H

#include "jobs.h"

/* A job: carry out a ConfigureAdapterRequest. */
struct outcome configure_adapter_job(const void *request);
/* A job without a request: bring the loopback interface up. */
struct outcome loopback_job(const void *nothing);

#endif

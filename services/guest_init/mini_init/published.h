/*
 * The bounce pool that the kernel publishes. services/guest_init/readers.py has the same rules: a
 * pool that cannot be read whole counts as not published. Must not know the channel.
 */
#ifndef MINI_INIT_PUBLISHED_H
#define MINI_INIT_PUBLISHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Places where a pool is published, in the order in which they are read; numbered as PoolSource. */
enum pool_source {
    POOL_NONE = 1,
    POOL_VMBUS = 2,
    POOL_VIRTIO = 3,
    POOL_DEVICE_TREE = 4,
    POOL_KERNEL_LOG = 5,
};

struct pool {
    enum pool_source source; /* POOL_NONE: the rest is 0 */
    uint64_t base, size_bytes;
};

/* Read what is published now, below a root directory, "" for this one. */
struct pool pool_read(const char *root);

/* Parse a number as strtoull does with base 0, white space around it; false for a minus, for other
 * text and for overflow. */
bool pool_parse_number(const char *text, size_t length, uint64_t *number);
/* Find the pool in a line of the kernel's log. */
bool pool_parse_log(const char *line, struct pool *pool);

#endif

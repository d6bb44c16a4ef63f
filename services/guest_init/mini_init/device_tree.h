/*
 * Pools in the device tree: nodes of /reserved-memory that are compatible with
 * "restricted-dma-pool".
 */
#ifndef MINI_INIT_DEVICE_TREE_H
#define MINI_INIT_DEVICE_TREE_H

#include <stdbool.h>
#include <stdint.h>

/* Read the range that all pools make up; false: there is none, or they leave gaps. */
bool device_tree_pool(const char *root, uint64_t *base, uint64_t *size_bytes);

#endif

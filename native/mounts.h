/*
 * The mounts of one device, by the slot of their share. Its queues find the mount of a request
 * here; see native_mounts.py.
 *
 * Must not know requests or rings.
 */
#ifndef PORTHOLE_MOUNTS_H
#define PORTHOLE_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

#include "mount.h"

/* The bits of a node's id from this one on are the slot of its share. */
#define PH_SLOT_SHIFT 44

struct ph_mounts;

/* From any thread; ph_mounts_free only when no queue is served any more. */
struct ph_mounts *ph_mounts_new(void); /* NULL: no memory */
void ph_mounts_free(struct ph_mounts *mounts);
/* Put a mount into a slot; NULL empties it. Requests under way go on with what was there. False: no
 * memory, and nothing was changed. */
bool ph_mounts_put(struct ph_mounts *mounts, uint64_t slot, struct ph_mount *mount);

enum { PH_CACHED_MOUNTS = 8 };

/* The mounts that one queue's thread served last, each with a reference, until it goes to sleep. */
struct ph_mount_cache {
    struct ph_mounts *mounts;
    uint64_t changes; /* of the mounts, when they were found */
    struct {
        uint64_t slot;
        struct ph_mount *mount; /* NULL: none is cached here */
    } cached[PH_CACHED_MOUNTS];
};

/* Returns the mount in a slot, and caches it; NULL when the slot is empty. This also releases every
 * mount that was taken out since. */
struct ph_mount *ph_mount_cache_find(struct ph_mount_cache *cache, uint64_t slot);
void ph_mount_cache_release(struct ph_mount_cache *cache);

#endif

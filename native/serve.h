/*
 * The loop of a virtio-fs queue: what Python calls, once, to have hot requests served without it.
 *
 * The caller's thread serves the queue here, without the interpreter's lock, until there is
 * something for Python to do. Layouts and names are those of fastpath/declarations.py.
 */
#ifndef PORTHOLE_SERVE_H
#define PORTHOLE_SERVE_H

#include "fuse_request.h"
#include "ring.h"
#include "table.h"

/* Which share of a device a node belongs to: what its id says above this bit. */
#define PH_SLOT_SHIFT 44

enum ph_outcome {
    PH_OUTCOME_PYTHON = 1, /* the next chain, or what is wrong with the ring */
    PH_OUTCOME_STOPPED = 2,
    PH_OUTCOME_WOKEN = 3, /* the further descriptor is readable */
};

/* Where the queues of one device find what their guest has mounted now, by the slot of a node. */
struct ph_mounts;

struct ph_mounts *ph_mounts_new(void);
void ph_mounts_free(struct ph_mounts *mounts);
/* NULL: nothing is mounted there. Requests under way go on with what was. False: no memory. */
bool ph_mounts_put(struct ph_mounts *mounts, uint64_t slot, struct ph_mount *mount);

/* NULL: no memory. */
struct ph_worker *ph_worker_new(void);
void ph_worker_delete(struct ph_worker *worker);

int ph_serve(struct ph_ring *ring, struct ph_worker *worker, struct ph_mounts *mounts);

/* Pin what Python asks for; false with errno. `pin` is to be unpinned. */
bool ph_see_node(struct ph_mount *mount, uint64_t id, struct ph_seen *seen);
bool ph_see_held(struct ph_mount *mount, int fd, struct ph_seen *seen);
bool ph_see_open_file(struct ph_mount *mount, uint64_t handle, uint32_t kind, struct ph_seen *seen);

#endif

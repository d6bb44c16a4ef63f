/*
 * What the parts of a mount (mount.c, nodes.c, node_index.c, eviction.c, reopening.c, open_files.c,
 * relief.c) know of each other. The mount's mutex guards every field that changes, unless the field
 * says otherwise.
 *
 * No descriptor is opened or closed while the mutex is held. A function that takes a node or an
 * open file out of the tables returns it, and its caller frees it after it has let go of the mutex.
 */
#ifndef PORTHOLE_MOUNT_PRIVATE_H
#define PORTHOLE_MOUNT_PRIVATE_H

#include <stdatomic.h>

#include "bound.h"
#include "descriptors.h"
#include "mount.h"
#include "mutex.h"
#include "nodes.h"
#include "open_files.h"
#include "volumes.h"

struct ph_node {
    uint64_t id;
    struct ph_volume *volume;
    uint64_t ino;
    uint64_t born_ns; /* 0: not known */
    uint32_t kind;
    const struct ph_rules *rules;
    bool is_submount; /* a directory that is announced as the root of a file system */
    atomic_bool posix_locked;
    /* The mutex guards the rest. A pinned node keeps its descriptor once it has one. */
    uint32_t pins;
    uint32_t opens;
    uint64_t lookups;
    struct file_handle *reopen_with; /* made when the node is first evicted, if it is trusted */
    uint64_t found_in;               /* id of the directory that it was found in last */
    char *found_as;                  /* its name there; NULL: it has been removed, or has none */
    int fd;                          /* -1: evicted */
    bool recently;                   /* used since a sweep came by */
    bool known;                      /* found by its id */
    bool keyed;                      /* found by its inode */
    bool frees_volume;               /* the last of its volume, which is out of the list */
    struct ph_node *next_by_id;
    struct ph_node *next_by_key;
    uint32_t place; /* in resident.nodes */
};

/* Nodes by their ids, and by volume and inode number. */
struct ph_node_index {
    struct ph_node **by_id;
    struct ph_node **by_key;
    uint64_t buckets; /* of each; a power of two */
};

/* Nodes besides the root that have a descriptor. */
struct ph_resident_nodes {
    struct ph_node **nodes;
    uint32_t room;
    uint32_t most;
    uint32_t hand; /* where the next sweep begins */
};

struct ph_open_file {
    uint64_t handle;
    int fd;
    enum ph_kind kind;
    struct ph_node *node;
    struct ph_mutex position_mutex;
    int64_t position PH_GUARDED_BY(position_mutex); /* of the descriptor, of a directory */
    /* The mount's mutex guards the rest. */
    uint32_t pins;
    bool known;
    struct ph_open_file *next;
};

struct ph_open_file_table {
    struct ph_open_file **by_handle;
    uint64_t buckets; /* a power of two */
    uint64_t next_handle;
};

struct ph_mount {
    struct ph_rules rules;
    struct ph_descriptors descriptors;
    struct ph_node *root;
    bool may_switch;
    atomic_uint references;
    struct ph_mount *next; /* relief.c's */
    /* Written with the mutex, read without: a bound that is checked early is checked again. */
    struct ph_bound node_bound;
    struct ph_bound open_file_bound;
    atomic_uint resident_count; /* of resident.nodes */
    struct ph_mutex mutex;
    struct ph_volume *volumes PH_GUARDED_BY(mutex);
    struct ph_node_index index PH_GUARDED_BY(mutex);
    struct ph_resident_nodes resident PH_GUARDED_BY(mutex);
    uint64_t next_id PH_GUARDED_BY(mutex);
    struct ph_open_file_table open_files PH_GUARDED_BY(mutex);
};

/* mount.c */
/* False: it has no reference any more. */
bool ph_mount_retain_if_used(struct ph_mount *mount);

/* node_index.c */
bool ph_node_index_init(struct ph_node_index *index);
void ph_node_index_free(struct ph_node_index *index);
struct ph_node *ph_node_index_find(const struct ph_node_index *index, uint64_t id);
struct ph_node *ph_node_index_find_key(const struct ph_node_index *index,
                                       const struct ph_volume *volume, uint64_t ino);
void ph_node_index_add(struct ph_node_index *index, struct ph_node *node);
void ph_node_index_remove(struct ph_node_index *index, struct ph_node *node);
/* From now on find the node by its id only: its inode number is another file's. */
void ph_node_index_remove_key(struct ph_node_index *index, struct ph_node *node);
/* Make twice as many buckets; without memory for them the chains grow longer instead. */
void ph_node_index_grow(struct ph_node_index *index);

/* nodes.c */
/* Make a node of a volume, which counts it. */
struct ph_node *ph_node_new(uint64_t id, struct ph_volume *volume, const struct ph_status *status,
                            const struct ph_rules *rules);
/* If the guest has forgotten the node and nobody uses it, returns it for the caller to free. */
struct ph_node *ph_node_if_done(struct ph_mount *mount, struct ph_node *node) PH_WITH(mount->mutex);
/* Close the descriptor and free the node, and its volume if that has no other; NULL is none. */
void ph_node_free(struct ph_node *node);
/* Find the node of a file by its status; an evicted one may be of another file. */
struct ph_node *ph_node_find_by_status(struct ph_mount *mount, const struct ph_status *status)
    PH_WITH(mount->mutex);

/* eviction.c */
/* Give a node this descriptor; false with ENOMEM. */
bool ph_resident_add(struct ph_mount *mount, struct ph_node *node, int fd) PH_WITH(mount->mutex);
void ph_resident_remove(struct ph_mount *mount, struct ph_node *node) PH_WITH(mount->mutex);
/* Evict some nodes if too many have a descriptor, or if few descriptors are left; the mutex is let
 * go of in between. */
void ph_sweep(struct ph_mount *mount, bool few_left) PH_WITH(mount->mutex);

/* reopening.c */
/* Remember the directory and the name that a node was found by; NULL: it has no name. */
void ph_node_found(struct ph_node *node, uint64_t dir_id, const char *name);
/* Whether a node could be opened again by its name. */
bool ph_node_is_named(const struct ph_mount *mount, const struct ph_node *node)
    PH_WITH(mount->mutex);
/* Whether a status is of the node's very file, as far as a status can show that. */
bool ph_node_is_of(const struct ph_node *node, const struct ph_status *status);
/* Give a pinned node that was evicted a descriptor again; false with errno, ESTALE when its file is
 * not found. */
bool ph_node_reopen(struct ph_mount *mount, struct ph_node *node) PH_WITHOUT(mount->mutex);

/* open_files.c */
bool ph_open_file_table_init(struct ph_open_file_table *table);
/* Free all open files, and the forgotten nodes that only they kept. */
void ph_open_file_table_free(struct ph_open_file_table *table);
int64_t ph_directory_lock(struct ph_open_file *opened) PH_TAKES(opened->position_mutex);
void ph_directory_unlock_at(struct ph_open_file *opened, int64_t position)
    PH_LETS_GO_OF(opened->position_mutex);
void ph_directory_unlock(struct ph_open_file *opened) PH_LETS_GO_OF(opened->position_mutex);

#endif

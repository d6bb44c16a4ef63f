/*
 * What one guest has of a share between INIT and DESTROY: the nodes that it knows and what it has
 * opened. The same tables as nodes.py and handles.py, by the same rules; see there.
 *
 * Everything here may be called from any thread. A node or handle that is pinned keeps its
 * descriptor open until it is unpinned. Must not know requests or rings.
 */
#ifndef PORTHOLE_TABLE_H
#define PORTHOLE_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#define PH_KEEP_ID 0xffffffffu
#define PH_NOWHERE ((int64_t)-1) /* the position in a directory is not known */

/* How the files of one share are shown, and what has to be left to Python. */
struct ph_rules {
    uint64_t ino_mask; /* what tells the inodes of one share of a device from those of another */
    uint32_t uid;      /* shown as every file's owner; PH_KEEP_ID: the real one */
    uint32_t gid;
    uint32_t keep_dir; /* mode bits that are shown */
    uint32_t keep_file;
    uint32_t valid_s;    /* how long names and attributes may be trusted */
    uint32_t open_flags; /* FOPEN_* of files and directories */
    uint32_t opendir_flags;
    uint32_t read_only;
    uint32_t writeback; /* the guest keeps back what it writes */
    uint32_t cold;      /* Python serves names, attributes, opening, and what clears set-id bits */
};

struct ph_fs_setup {
    struct ph_rules rules;
    uint64_t root_id; /* of the shared directory; other nodes are numbered from there */
    uint64_t nodes;   /* limits, as in descriptors.py */
    uint64_t descriptors;
    uint64_t handles;
    int32_t root_fd;          /* O_PATH; taken over */
    int32_t descriptor_limit; /* the first number that is not ours to use */
    uint32_t may_switch;      /* whether files are made as the guest's user */
};

struct ph_fs;
struct ph_node;
struct ph_handle;

enum ph_kind {
    PH_FILE = 1,
    PH_DIRECTORY = 2,
};

/* What Python needs to know of a pinned node or handle. */
struct ph_seen {
    uint64_t id; /* of the node, or of the handle's node */
    void *pin;
    int32_t fd; /* of the node or handle */
    int32_t node_fd;
    uint32_t kind; /* S_IFMT bits of the node */
};

/* NULL: no memory, or the shared directory cannot be read. One reference is the caller's. */
struct ph_fs *ph_fs_new(const struct ph_fs_setup *setup);
void ph_fs_retain(struct ph_fs *fs);
void ph_fs_release(struct ph_fs *fs);
uint64_t ph_fs_node_count(struct ph_fs *fs);
uint64_t ph_fs_node_limit(const struct ph_fs *fs);
uint64_t ph_fs_handle_count(struct ph_fs *fs);
const struct ph_rules *ph_fs_rules(const struct ph_fs *fs);
uint64_t ph_fs_root_id(const struct ph_fs *fs);
bool ph_fs_may_switch(const struct ph_fs *fs);
/* The descriptor, or -1 with errno when there is none or its number is not ours to use. */
int ph_fs_claim(const struct ph_fs *fs, int fd);
/* Open what a descriptor refers to with other flags. */
int ph_fs_open_again(const struct ph_fs *fs, int fd, int flags);

/* Each returns a pinned node, or NULL with errno. Those that take a descriptor take it over. */
struct ph_node *ph_node_pin(struct ph_fs *fs, uint64_t id);
struct ph_node *ph_node_hold(struct ph_fs *fs, int fd, const struct stat *status,
                             const struct ph_rules *rules);
struct ph_node *ph_node_hold_known(struct ph_fs *fs, const struct stat *status);
/* Whether a file of this inode number, on the node's file system, is known now. */
bool ph_node_knows_sibling(struct ph_fs *fs, const struct ph_node *node, uint64_t ino);
void ph_node_unpin(struct ph_fs *fs, struct ph_node *node);
void ph_node_forget(struct ph_fs *fs, uint64_t id, uint64_t count);
bool ph_node_has_room(struct ph_fs *fs);

uint64_t ph_node_id(const struct ph_node *node);
int ph_node_fd(const struct ph_node *node);
uint32_t ph_node_kind(const struct ph_node *node);
const struct ph_rules *ph_node_rules(const struct ph_node *node);

/* The number of the new handle, or 0 with errno; the descriptor is taken over. */
uint64_t ph_handle_add(struct ph_fs *fs, struct ph_node *node, int fd, enum ph_kind kind);
struct ph_handle *ph_handle_pin(struct ph_fs *fs, uint64_t number, enum ph_kind kind);
void ph_handle_unpin(struct ph_fs *fs, struct ph_handle *handle);
bool ph_handle_remove(struct ph_fs *fs, uint64_t number, enum ph_kind kind);
/* As ph_handle_remove, unless the handle is locked: see ph_handle_mark_locked. */
bool ph_handle_remove_unlocked(struct ph_fs *fs, uint64_t number, enum ph_kind kind);
bool ph_handle_has_room(struct ph_fs *fs);

int ph_handle_fd(const struct ph_handle *handle);
struct ph_node *ph_handle_node(const struct ph_handle *handle);
/* Held while the host's position in an open directory is in use; says where that is. */
int64_t ph_handle_lock(struct ph_handle *handle);
void ph_handle_unlock_at(struct ph_handle *handle, int64_t position);
/* By who does not know where the position is. */
void ph_handle_unlock(struct ph_handle *handle);
/* Python keeps locks of the handle's node, so it must learn of FLUSH and RELEASE. */
void ph_handle_mark_locked(struct ph_handle *handle);
bool ph_handle_is_locked(const struct ph_handle *handle);

#endif

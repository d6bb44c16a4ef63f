/*
 * A mount: what one guest has of a share between INIT and DESTROY, the nodes that it knows and the
 * files that it has open. Its tables follow the rules of nodes.py and open_files.py.
 *
 * Everything here may be called from any thread. A node or an open file that is pinned keeps its
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
    uint32_t to_python; /* Python serves names, attributes, opening, and what clears set-id bits */
};

struct ph_mount_setup {
    struct ph_rules rules;
    uint64_t root_id; /* of the shared directory; other nodes are numbered from there */
    uint64_t nodes;   /* limits, as in descriptors.py */
    uint64_t descriptors;
    uint64_t handles;
    int32_t root_fd;          /* O_PATH; taken over */
    int32_t descriptor_limit; /* the first number that is not ours to use */
    uint32_t may_switch;      /* whether files are made as the guest's user */
};

struct ph_mount;
struct ph_node;
struct ph_open_file;

enum ph_kind {
    PH_FILE = 1,
    PH_DIRECTORY = 2,
};

/* What Python needs to know of a pinned node or open file. */
struct ph_seen {
    uint64_t id; /* of the node, or of the open file's node */
    void *pin;
    int32_t fd; /* of the node or open file */
    int32_t node_fd;
    uint32_t kind; /* S_IFMT bits of the node */
};

/* NULL: no memory, or the shared directory cannot be read. One reference is the caller's. */
struct ph_mount *ph_mount_new(const struct ph_mount_setup *setup);
void ph_mount_retain(struct ph_mount *mount);
void ph_mount_release(struct ph_mount *mount);
uint64_t ph_mount_node_count(struct ph_mount *mount);
uint64_t ph_mount_node_limit(const struct ph_mount *mount);
uint64_t ph_mount_open_file_count(struct ph_mount *mount);
const struct ph_rules *ph_mount_rules(const struct ph_mount *mount);
uint64_t ph_mount_root_id(const struct ph_mount *mount);
bool ph_mount_may_switch(const struct ph_mount *mount);
/* The descriptor, or -1 with errno when there is none or its number is not ours to use. */
int ph_mount_claim(const struct ph_mount *mount, int fd);
/* Open what a descriptor refers to with other flags. */
int ph_mount_open_again(const struct ph_mount *mount, int fd, int flags);

/* Each returns a pinned node, or NULL with errno. Those that take a descriptor take it over. */
struct ph_node *ph_node_pin(struct ph_mount *mount, uint64_t id);
struct ph_node *ph_node_hold(struct ph_mount *mount, int fd, const struct stat *status,
                             const struct ph_rules *rules);
struct ph_node *ph_node_hold_known(struct ph_mount *mount, const struct stat *status);
/* Whether a file of this inode number, on the node's file system, is known now. */
bool ph_node_knows_sibling(struct ph_mount *mount, const struct ph_node *node, uint64_t ino);
void ph_node_unpin(struct ph_mount *mount, struct ph_node *node);
void ph_node_forget(struct ph_mount *mount, uint64_t id, uint64_t count);
bool ph_node_has_room(struct ph_mount *mount);

uint64_t ph_node_id(const struct ph_node *node);
int ph_node_fd(const struct ph_node *node);
uint32_t ph_node_kind(const struct ph_node *node);
const struct ph_rules *ph_node_rules(const struct ph_node *node);

/* Returns the new file's handle, or 0 with errno; takes the descriptor over. */
uint64_t ph_open_file_add(struct ph_mount *mount, struct ph_node *node, int fd, enum ph_kind kind);
struct ph_open_file *ph_open_file_pin(struct ph_mount *mount, uint64_t handle, enum ph_kind kind);
void ph_open_file_unpin(struct ph_mount *mount, struct ph_open_file *opened);
bool ph_open_file_remove(struct ph_mount *mount, uint64_t handle, enum ph_kind kind);
/* As ph_open_file_remove, unless Python keeps POSIX locks of the file. */
bool ph_open_file_remove_unless_posix_locked(struct ph_mount *mount, uint64_t handle,
                                             enum ph_kind kind);
bool ph_open_file_has_room(struct ph_mount *mount);

int ph_open_file_fd(const struct ph_open_file *opened);
struct ph_node *ph_open_file_node(const struct ph_open_file *opened);
/* Keep other threads from an open directory's position on the host; returns the position. */
int64_t ph_directory_hold(struct ph_open_file *opened);
void ph_directory_let_go_at(struct ph_open_file *opened, int64_t position);
/* As ph_directory_let_go_at, where it is not known where that leaves the position. */
void ph_directory_let_go(struct ph_open_file *opened);
/* Python keeps POSIX locks of the file's node: it serves FLUSH and RELEASE from now on. */
void ph_open_file_mark_posix_locked(struct ph_open_file *opened);
bool ph_open_file_is_posix_locked(const struct ph_open_file *opened);

#endif

/*
 * A mount: what one guest has of a share between INIT and DESTROY, the nodes that it knows
 * (nodes.h) and the files that it has open (open_files.h); see mount.py.
 *
 * Owns the share's rules and the limits. Everything here may be called from any thread. Must not
 * know requests or rings.
 */
#ifndef PORTHOLE_MOUNT_H
#define PORTHOLE_MOUNT_H

#include <linux/limits.h>
#include <stdbool.h>
#include <stdint.h>

#define PH_KEEP_ID 0xffffffffu

/* How the files of one share are shown, and what has to be left to Python. */
struct ph_rules {
    uint64_t ino_mask; /* flipped in inode numbers, so that the shares of a device differ */
    uint32_t uid;      /* shown as every file's owner; PH_KEEP_ID: the real one */
    uint32_t gid;
    uint32_t keep_dir; /* mode bits that are shown */
    uint32_t keep_file;
    uint32_t valid_s;    /* how long names and attributes may be trusted */
    uint32_t open_flags; /* FOPEN_* of files and directories */
    uint32_t opendir_flags;
    uint32_t read_only;
    uint32_t writeback;   /* the guest caches what it writes */
    uint32_t submounts;   /* directories of other volumes are announced as submounts */
    uint32_t umask;       /* the guest's umask comes with its requests, still to be applied */
    uint32_t acls;        /* ACLs are shown as the host has them */
    uint32_t to_python;   /* Python serves names, attributes and opening */
    uint32_t keeps_modes; /* modes are kept beside the host's: Python clears set-id bits */
    uint32_t no_set_ids;  /* the guest leaves none: Python makes files with them, and clears them */
    /* The host's attribute with a guest's file capabilities, which Python removes before a write;
     * empty: the kernel knows them. */
    char kept_capability[XATTR_NAME_MAX + 1];
};

struct ph_mount_setup {
    struct ph_rules rules;
    uint64_t root_id; /* of the shared directory; other nodes are numbered from there */
    uint64_t nodes;   /* limits, as in descriptors.py */
    uint64_t all_nodes;
    uint64_t descriptors;
    uint64_t handles;
    uint64_t all_handles;
    int32_t root_fd;          /* O_PATH; taken over */
    int32_t descriptor_limit; /* the first number that a device may not use */
    uint32_t may_switch;      /* whether files are made as the guest's user */
    uint32_t alone;           /* no other guest's mounts are in this process */
};

struct ph_mount;

/* Returns NULL when there is no memory, or the shared directory cannot be read. The caller gets one
 * reference, and releases it in the end; only a holder of a reference may use the mount. */
struct ph_mount *ph_mount_new(const struct ph_mount_setup *setup);
void ph_mount_retain(struct ph_mount *mount);
void ph_mount_release(struct ph_mount *mount);
uint64_t ph_mount_node_count(struct ph_mount *mount);
uint64_t ph_mount_open_file_count(struct ph_mount *mount);
/* How many it may have now: no mount gets more than it leaves to the others. */
uint64_t ph_mount_node_limit(struct ph_mount *mount);
uint64_t ph_mount_open_file_limit(struct ph_mount *mount);
uint64_t ph_mount_root_id(const struct ph_mount *mount);
bool ph_mount_may_switch(const struct ph_mount *mount);
/* Like ph_claim and ph_open_via_proc; what was opened is claimed as well. */
int ph_mount_claim(struct ph_mount *mount, int fd);
int ph_mount_open_via_proc(struct ph_mount *mount, int fd, int flags);

#endif

/*
 * The nodes that a guest knows. nodes.py explains their rules.
 *
 * From any thread. A pinned node has an O_PATH descriptor, which stays open until the node is
 * unpinned. Must not know requests.
 */
#ifndef PORTHOLE_NODES_H
#define PORTHOLE_NODES_H

#include <stdbool.h>
#include <stdint.h>

#include "mount.h"
#include "status.h"

struct ph_node;

/* Each returns a pinned node, or NULL with errno. */
struct ph_node *ph_node_pin(struct ph_mount *mount, uint64_t id);
/* Count one lookup of a file by a name in a directory, or of one without a name (NULL), by an
 * O_PATH descriptor, which is taken over; makes the node if the file is not known. */
struct ph_node *ph_node_count_lookup(struct ph_mount *mount, const struct ph_node *dir,
                                     const char *name, int fd, const struct ph_status *status);
/* Count one lookup of a file by a name in a directory, whose status was just read; NULL, without
 * errno, if only a descriptor can show whether the file is known. */
struct ph_node *ph_node_count_lookup_if_known(struct ph_mount *mount, const struct ph_node *dir,
                                              const char *name, const struct ph_status *status);
void ph_node_unpin(struct ph_mount *mount, struct ph_node *node);

/* Take lookups back; unknown nodes and counts too high are harmless. */
void ph_node_forget(struct ph_mount *mount, uint64_t id, uint64_t count);
bool ph_node_has_room(struct ph_mount *mount);
/* Whether a file of this inode number, in the node's volume, is known now. */
bool ph_node_knows_sibling(struct ph_mount *mount, const struct ph_node *node, uint64_t ino);

/* The guest has renamed a file: it has this name now. */
void ph_node_renamed(struct ph_mount *mount, const struct ph_node *dir, const char *name);
/* The guest will remove a name. Where handles are not trusted, this returns the node of its file,
 * pinned, because the file may have other names or be open, and nothing leads back to it without
 * this name. Else it returns NULL. */
struct ph_node *ph_removal_begin(struct ph_mount *mount, const struct ph_node *dir,
                                 const char *name);
/* Unpin what ph_removal_begin returned, and forget the name if it was removed. */
void ph_removal_end(struct ph_mount *mount, struct ph_node *node, const struct ph_node *dir,
                    const char *name, bool removed);

/* Of a pinned node. */
uint64_t ph_node_id(const struct ph_node *node);
int ph_node_fd(const struct ph_node *node);
uint32_t ph_node_kind(const struct ph_node *node); /* S_IFMT bits */
const struct ph_rules *ph_node_rules(const struct ph_node *node);
uint64_t ph_node_ino_mask(const struct ph_node *node); /* flipped in its inode number */
bool ph_node_is_submount(const struct ph_node *node);  /* announced as FUSE_ATTR_SUBMOUNT */

#endif

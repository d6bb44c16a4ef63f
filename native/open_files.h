/*
 * The files and directories that a guest has open, by handle. open_files.py explains their rules.
 *
 * From any thread. A pinned file's descriptor stays open until the file is unpinned, and so does
 * that of its node. Must not know requests.
 */
#ifndef PORTHOLE_OPEN_FILES_H
#define PORTHOLE_OPEN_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "mount.h"
#include "nodes.h"

#define PH_NOWHERE ((int64_t)-1) /* the position in a directory is not known */

struct ph_open_file;

enum ph_kind {
    PH_FILE = 1,
    PH_DIRECTORY = 2,
};

/* Returns the new file's handle, or 0 with errno; takes the descriptor over. The node is pinned. */
uint64_t ph_open_file_add(struct ph_mount *mount, struct ph_node *node, int fd, enum ph_kind kind);
/* Returns NULL with errno when the guest has no such file open. */
struct ph_open_file *ph_open_file_pin(struct ph_mount *mount, uint64_t handle, enum ph_kind kind);
void ph_open_file_unpin(struct ph_mount *mount, struct ph_open_file *opened);
/* Whether there was such a file; it is closed when nobody has it pinned. */
bool ph_open_file_remove(struct ph_mount *mount, uint64_t handle, enum ph_kind kind);
/* Like ph_open_file_remove, but false when Python keeps POSIX locks of the file. */
bool ph_open_file_remove_unless_posix_locked(struct ph_mount *mount, uint64_t handle,
                                             enum ph_kind kind);
bool ph_open_file_has_room(struct ph_mount *mount);

/* Of a pinned file. */
int ph_open_file_fd(const struct ph_open_file *opened);
struct ph_node *ph_open_file_node(const struct ph_open_file *opened);
/* Python keeps POSIX locks of the file's node: it serves FLUSH and RELEASE from now on. */
void ph_open_file_mark_posix_locked(struct ph_open_file *opened);
bool ph_open_file_is_posix_locked(const struct ph_open_file *opened);

/* Lock the mutex of a directory's position on the host; returns the position. */
int64_t ph_directory_lock(struct ph_open_file *opened);
void ph_directory_unlock_at(struct ph_open_file *opened, int64_t position);
/* Unlock the mutex, and say that the position is not known. */
void ph_directory_unlock(struct ph_open_file *opened);

#endif

/*
 * Descriptors that run short: the mounts of this process, of which the one with most resident nodes
 * gives some up.
 *
 * From any thread. Must not know requests.
 */
#ifndef PORTHOLE_RELIEF_H
#define PORTHOLE_RELIEF_H

#include "mount.h"

/* A mount counts as long as it is here; its last reference takes it out. */
void ph_relief_add(struct ph_mount *mount);
void ph_relief_remove(struct ph_mount *mount);
/* A descriptor of this number was opened for a mount. If few are left, evict some nodes. */
void ph_relief_if_crowded(struct ph_mount *mount, int fd);

#endif

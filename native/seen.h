/*
 * What Python sees of nodes and open files, which it pins for as long as it references them; see
 * native_tables.py.
 */
#ifndef PORTHOLE_SEEN_H
#define PORTHOLE_SEEN_H

#include <stdbool.h>
#include <stdint.h>

#include "mount.h"

/* What Python has to know of a pinned node or open file. */
struct ph_seen {
    uint64_t id; /* of the node, or of the open file's node */
    void *pin;   /* to be unpinned */
    int32_t fd;  /* of the node or open file */
    int32_t node_fd;
    uint32_t kind; /* S_IFMT bits of the node */
};

/* Each is false with errno where there is nothing to pin. */
bool ph_see_node(struct ph_mount *mount, uint64_t id, struct ph_seen *seen);
/* Find or make the node of an O_PATH descriptor, like ph_node_count_lookup. */
bool ph_see_held(struct ph_mount *mount, int fd, struct ph_seen *seen);
bool ph_see_open_file(struct ph_mount *mount, uint64_t handle, uint32_t kind, struct ph_seen *seen);

#endif

/*
 * Nodes and open files that Python pins, for as long as it references them; see native_tables.py.
 */
#ifndef PORTHOLE_PYTHON_PINS_H
#define PORTHOLE_PYTHON_PINS_H

#include <stdbool.h>
#include <stdint.h>

#include "mount.h"

/* What Python has to know of a pinned node or open file. */
struct ph_python_pin {
    uint64_t id; /* of the node, or of the open file's node */
    uint64_t ino_mask;
    void *pinned; /* the node or open file, to be unpinned */
    int32_t fd;   /* of the node or open file */
    int32_t node_fd;
    uint32_t kind; /* S_IFMT bits of the node */
    uint32_t is_submount;
};

/* Each is false with errno where there is nothing to pin. */
bool ph_python_pin_node(struct ph_mount *mount, uint64_t id, struct ph_python_pin *pin);
/* Count a lookup of a file by a name in the directory of this id and pin the node, like
 * ph_node_count_lookup. */
bool ph_python_count_and_pin(struct ph_mount *mount, int fd, uint64_t dir_id, const char *name,
                             struct ph_python_pin *pin);
bool ph_python_pin_open_file(struct ph_mount *mount, uint64_t handle, uint32_t kind,
                             struct ph_python_pin *pin);

#endif

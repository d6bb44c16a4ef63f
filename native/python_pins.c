#include "python_pins.h"

#include <errno.h>
#include <unistd.h>

#include "nodes.h"
#include "open_files.h"

/* Describe a node that was pinned for Python; false if there is none. */
static bool describe(struct ph_node *node, struct ph_python_pin *pin)
{
    if (!node)
        return false;
    *pin = (struct ph_python_pin){
        .id = ph_node_id(node),
        .ino_mask = ph_node_ino_mask(node),
        .pinned = node,
        .fd = ph_node_fd(node),
        .node_fd = ph_node_fd(node),
        .kind = ph_node_kind(node),
        .is_submount = ph_node_is_submount(node),
    };
    return true;
}

bool ph_python_pin_node(struct ph_mount *mount, uint64_t id, struct ph_python_pin *pin)
{
    return describe(ph_node_pin(mount, id), pin);
}

bool ph_python_count_and_pin(struct ph_mount *mount, int fd, uint64_t dir_id, const char *name,
                             struct ph_python_pin *pin)
{
    struct ph_node *dir = ph_node_pin(mount, dir_id), *node = NULL;
    struct ph_status status;
    int error;

    if (dir && !ph_status_of(fd, &status))
        node = ph_node_count_lookup(mount, dir, name, fd, &status);
    else
        close(fd);
    error = errno;
    if (dir)
        ph_node_unpin(mount, dir);
    errno = error;
    return describe(node, pin);
}

bool ph_python_pin_open_file(struct ph_mount *mount, uint64_t handle, uint32_t kind,
                             struct ph_python_pin *pin)
{
    struct ph_open_file *opened = ph_open_file_pin(mount, handle, kind);

    if (!opened)
        return false;
    describe(ph_open_file_node(opened), pin);
    pin->pinned = opened;
    pin->fd = ph_open_file_fd(opened);
    return true;
}

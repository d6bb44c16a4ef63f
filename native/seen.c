#include "seen.h"

#include <errno.h>
#include <unistd.h>

#include "nodes.h"
#include "open_files.h"

static bool see(struct ph_node *node, struct ph_seen *seen)
{
    if (!node)
        return false;
    *seen = (struct ph_seen){
        .id = ph_node_id(node),
        .pin = node,
        .fd = ph_node_fd(node),
        .node_fd = ph_node_fd(node),
        .kind = ph_node_kind(node),
    };
    return true;
}

bool ph_see_node(struct ph_mount *mount, uint64_t id, struct ph_seen *seen)
{
    return see(ph_node_pin(mount, id), seen);
}

bool ph_see_held(struct ph_mount *mount, int fd, struct ph_seen *seen)
{
    struct stat status;

    if (fstat(fd, &status)) {
        int error = errno;

        close(fd);
        errno = error;
        return false;
    }
    return see(ph_node_count_lookup(mount, fd, &status, ph_mount_rules(mount)), seen);
}

bool ph_see_open_file(struct ph_mount *mount, uint64_t handle, uint32_t kind, struct ph_seen *seen)
{
    struct ph_open_file *opened = ph_open_file_pin(mount, handle, kind);

    if (!opened)
        return false;
    see(ph_open_file_node(opened), seen);
    seen->pin = opened;
    seen->fd = ph_open_file_fd(opened);
    return true;
}

/*
 * Evicting nodes: the descriptors of those that were not used lately are closed beyond a number,
 * and opened again when they are needed (reopening.c).
 */
#include "mount_private.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { SWEEP_STEPS = 16 };

bool ph_resident_add(struct ph_mount *mount, struct ph_node *node, int fd)
{
    struct ph_resident_nodes *resident = &mount->resident;

    if (mount->resident_count == resident->room) {
        uint32_t room = resident->room ? resident->room * 2 : 64;
        struct ph_node **nodes = realloc(resident->nodes, room * sizeof(struct ph_node *));

        if (!nodes) {
            errno = ENOMEM;
            return false;
        }
        resident->nodes = nodes;
        resident->room = room;
    }
    node->fd = fd;
    node->place = mount->resident_count++;
    resident->nodes[node->place] = node;
    return true;
}

void ph_resident_remove(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_resident_nodes *resident = &mount->resident;
    struct ph_node *last = resident->nodes[--mount->resident_count];

    resident->nodes[node->place] = last;
    last->place = node->place;
}

/* Whether a node that is evicted can be opened again. */
static bool leads_back(const struct ph_mount *mount, const struct ph_node *node)
    PH_WITH(mount->mutex)
{
    return (node->reopen_with && node->volume->handles == PH_TRUSTED) ||
           ph_node_is_named(mount, node);
}

/* Look at one node, and evict it, if it was not used since the last sweep. */
static void sweep_one(struct ph_mount *mount, bool few_left) PH_WITH(mount->mutex)
{
    struct ph_resident_nodes *resident = &mount->resident;
    struct ph_node *node = resident->nodes[resident->hand++ % mount->resident_count], *done = NULL;
    struct file_handle *reopen_with;
    struct stat status;
    bool linked, crowded;
    int fd = -1;

    if (node->recently || node->pins || node->opens) {
        node->recently = false;
        return;
    }
    crowded = mount->resident_count >
              (few_left ? resident->most / 2 : resident->most + resident->most / 2);
    node->pins++; /* so that no other thread evicts it */
    ph_mutex_let_go(&mount->mutex);
    linked = !fstat(node->fd, &status) && status.st_nlink;
    reopen_with = node->reopen_with;
    if (linked && !reopen_with)
        reopen_with = ph_volume_prepare(node->volume, &mount->descriptors, node->fd);
    ph_mutex_take(&mount->mutex);
    node->reopen_with = reopen_with;
    node->pins--;
    /* Nothing leads back to a file without a name; see nodes.py. */
    if ((crowded || (linked && leads_back(mount, node))) && node->known && !node->pins &&
        !node->opens && !node->recently) {
        ph_resident_remove(mount, node);
        fd = node->fd;
        node->fd = -1;
    } else {
        node->recently = true; /* not again at once */
        done = ph_node_if_done(mount, node);
    }
    ph_mutex_let_go(&mount->mutex);
    if (fd >= 0)
        close(fd);
    ph_node_free(done);
    ph_mutex_take(&mount->mutex);
}

void ph_sweep(struct ph_mount *mount, bool few_left)
{
    const struct ph_resident_nodes *resident = &mount->resident;

    for (int i = 0; i < SWEEP_STEPS && mount->resident_count > (few_left ? 0 : resident->most); i++)
        sweep_one(mount, few_left);
}

/*
 * Idle nodes: their descriptors are closed, and opened again when they are needed.
 */
#include "mount_private.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { SWEEP_STEPS = 16 };

bool ph_in_use_add(struct ph_in_use *in_use, struct ph_node *node, int fd)
{
    if (in_use->count == in_use->room) {
        uint32_t room = in_use->room ? in_use->room * 2 : 64;
        struct ph_node **nodes = realloc(in_use->nodes, room * sizeof(struct ph_node *));

        if (!nodes) {
            errno = ENOMEM;
            return false;
        }
        in_use->nodes = nodes;
        in_use->room = room;
    }
    node->fd = fd;
    node->place = in_use->count++;
    in_use->nodes[node->place] = node;
    return true;
}

void ph_in_use_remove(struct ph_in_use *in_use, struct ph_node *node)
{
    struct ph_node *last = in_use->nodes[--in_use->count];

    in_use->nodes[node->place] = last;
    last->place = node->place;
}

/* Let one node rest, if it was not used since the last sweep. */
static void sweep_one(struct ph_mount *mount) PH_WITH(mount->mutex)
{
    struct ph_in_use *in_use = &mount->in_use;
    struct ph_node *node = in_use->nodes[in_use->hand++ % in_use->count], *done = NULL;
    struct file_handle *reopen_with;
    struct stat status;
    bool rests, crowded;
    int fd = -1;

    if (node->recently || node->pins || node->opens) {
        node->recently = false;
        return;
    }
    crowded = in_use->count > in_use->most + in_use->most / 2;
    node->pins++; /* so that no other thread lets it rest */
    ph_mutex_let_go(&mount->mutex);
    /* Nothing leads back to a file without a name; see nodes.py. */
    rests = !fstat(node->fd, &status) && (status.st_nlink || crowded);
    reopen_with = node->reopen_with;
    if (rests && !reopen_with)
        reopen_with = ph_reopener_prepare(&mount->reopener, node->fd, node->dev);
    ph_mutex_take(&mount->mutex);
    node->reopen_with = reopen_with;
    node->pins--;
    if (rests && reopen_with && node->known && !node->pins && !node->opens && !node->recently) {
        ph_in_use_remove(in_use, node);
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

void ph_sweep(struct ph_mount *mount)
{
    const struct ph_in_use *in_use = &mount->in_use;

    for (int i = 0; in_use->rests && i < SWEEP_STEPS && in_use->count > in_use->most; i++)
        sweep_one(mount);
}

bool ph_wake(struct ph_mount *mount, struct ph_node *node)
{
    int fd = ph_reopener_reopen(&mount->reopener, node->dev, node->reopen_with);
    bool awake;

    if (fd < 0)
        return false;
    ph_mutex_take(&mount->mutex);
    awake = node->fd >= 0; /* another thread was quicker */
    if (!awake && ph_in_use_add(&mount->in_use, node, fd)) {
        awake = true;
        fd = -1;
        ph_sweep(mount);
    }
    ph_mutex_let_go(&mount->mutex);
    if (fd >= 0)
        close(fd);
    return awake;
}

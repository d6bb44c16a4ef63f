#include "nodes.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "mount_private.h"
#include "relief.h"

struct ph_node *ph_node_new(uint64_t id, struct ph_volume *volume, const struct ph_status *status,
                            const struct ph_rules *rules)
{
    struct ph_node *node = calloc(1, sizeof(*node));

    if (!node)
        return NULL;
    node->id = id;
    node->volume = volume;
    node->ino = status->host.st_ino;
    node->born_ns = status->born_ns;
    node->kind = status->host.st_mode & S_IFMT;
    node->rules = rules;
    node->fd = -1;
    node->recently = true;
    volume->nodes++;
    return node;
}

void ph_node_free(struct ph_node *node)
{
    if (!node)
        return;
    if (node->fd >= 0)
        close(node->fd);
    if (node->frees_volume)
        ph_volume_free(node->volume);
    free(node->reopen_with);
    free(node->found_as);
    free(node);
}

struct ph_node *ph_node_if_done(struct ph_mount *mount, struct ph_node *node)
{
    if (node->known || node->pins || node->opens)
        return NULL;
    if (node->fd >= 0)
        ph_resident_remove(mount, node);
    node->frees_volume = ph_volume_leave(&mount->volumes, node->volume);
    return node;
}

uint64_t ph_node_id(const struct ph_node *node)
{
    return node->id;
}

int ph_node_fd(const struct ph_node *node)
{
    return node->fd;
}

uint32_t ph_node_kind(const struct ph_node *node)
{
    return node->kind;
}

const struct ph_rules *ph_node_rules(const struct ph_node *node)
{
    return node->rules;
}

uint64_t ph_node_ino_mask(const struct ph_node *node)
{
    return node->volume->ino_mask;
}

bool ph_node_is_submount(const struct ph_node *node)
{
    return node->is_submount;
}

bool ph_node_has_room(struct ph_mount *mount)
{
    return ph_bound_has_room(&mount->node_bound);
}

void ph_node_unpin(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node *done;

    ph_mutex_take(&mount->mutex);
    node->pins--;
    done = ph_node_if_done(mount, node);
    ph_mutex_let_go(&mount->mutex);
    ph_node_free(done);
}

struct ph_node *ph_node_pin(struct ph_mount *mount, uint64_t id)
{
    struct ph_node *node;
    bool evicted = false;

    ph_mutex_take(&mount->mutex);
    node = ph_node_index_find(&mount->index, id);
    if (node) {
        node->pins++;
        node->recently = true;
        evicted = node->fd < 0;
    }
    ph_mutex_let_go(&mount->mutex);
    if (!node) {
        errno = ESTALE;
        return NULL;
    }
    if (evicted && !ph_node_reopen(mount, node)) {
        int error = errno;

        ph_node_unpin(mount, node);
        errno = error;
        return NULL;
    }
    return node;
}

bool ph_node_knows_sibling(struct ph_mount *mount, const struct ph_node *node, uint64_t ino)
{
    bool known;

    ph_mutex_take(&mount->mutex);
    known = ph_node_index_find_key(&mount->index, node->volume, ino);
    ph_mutex_let_go(&mount->mutex);
    return known;
}

struct ph_node *ph_node_find_by_status(struct ph_mount *mount, const struct ph_status *status)
{
    const struct ph_volume *volume = ph_volume_find(mount->volumes, status);

    return volume ? ph_node_index_find_key(&mount->index, volume, status->host.st_ino) : NULL;
}

/* Count a lookup by a name, and pin the node for the caller. */
static void count_and_pin(struct ph_node *node, const struct ph_node *dir, const char *name)
{
    ph_node_found(node, dir->id, name);
    node->lookups++;
    node->pins++;
    node->recently = true;
}

struct ph_node *ph_node_count_lookup_if_known(struct ph_mount *mount, const struct ph_node *dir,
                                              const char *name, const struct ph_status *status)
{
    struct ph_node *node;

    ph_mutex_take(&mount->mutex);
    node = ph_node_find_by_status(mount, status);
    /* While a descriptor of a file is open, no other file gets its inode number. */
    if (node && node->fd >= 0)
        count_and_pin(node, dir, name);
    else
        node = NULL;
    ph_mutex_let_go(&mount->mutex);
    return node;
}

/*
 * Find the node of a descriptor; an evicted one only if it is of the very same file. Such a node
 * takes the descriptor over, and *fd becomes -1. The mutex is let go of in between.
 */
static struct ph_node *recognize(struct ph_mount *mount, int *fd, const struct ph_status *status)
    PH_WITH(mount->mutex)
{
    struct ph_node *node;

    while ((node = ph_node_find_by_status(mount, status)) && node->fd < 0) {
        struct file_handle *found;
        bool same;

        node->pins++;
        ph_mutex_let_go(&mount->mutex);
        found = ph_volume_prepare(node->volume, &mount->descriptors, *fd);
        ph_mutex_take(&mount->mutex);
        same = found && node->reopen_with ? ph_is_same_file(found, node->reopen_with)
                                          : ph_node_is_of(node, status);
        free(found);
        node->pins--;
        if (!node->known) {
            struct ph_node *done = ph_node_if_done(mount, node);

            ph_mutex_let_go(&mount->mutex);
            ph_node_free(done);
            ph_mutex_take(&mount->mutex);
        } else if (!same) {
            ph_node_index_remove_key(&mount->index, node); /* the number was reused */
        } else if (node->fd < 0) {
            if (!ph_resident_add(mount, node, *fd))
                return NULL;
            *fd = -1;
        }
    }
    return node;
}

/*
 * The bits that tell the inode numbers of a file system that is not announced from those of the
 * share's own: they fill the upper half, which few numbers reach into, and differ wherever the
 * device numbers do. volumes.py has the same.
 */
static uint64_t foreign_mask(const struct ph_mount *mount, uint64_t dev)
{
    uint32_t mixed = (uint32_t)(dev ^ mount->root->volume->dev);

    mixed = (mixed ^ mixed >> 16) * 0x85ebca6bu;
    mixed = (mixed ^ mixed >> 13) * 0xc2b2ae35u;
    return (uint64_t)(mixed ^ mixed >> 16) << 32;
}

/* Make the node of a file that is not known; returns NULL with errno. */
static struct ph_node *add_node(struct ph_mount *mount, const struct ph_node *dir, int *fd,
                                const struct ph_status *status) PH_WITH(mount->mutex)
{
    bool is_submount;
    struct ph_volume *volume;
    struct ph_node *node;

    if (!ph_bound_has_room(&mount->node_bound)) {
        errno = ENFILE;
        return NULL;
    }
    volume = ph_volume_find_or_add(&mount->volumes, status);
    is_submount = mount->rules.submounts && S_ISDIR(status->host.st_mode) && volume != dir->volume;
    if (volume && !volume->nodes)
        volume->ino_mask =
            mount->rules.ino_mask ^ (is_submount ? 0 : foreign_mask(mount, volume->dev));
    node = volume ? ph_node_new(mount->next_id, volume, status, &mount->rules) : NULL;
    if (!node || !ph_resident_add(mount, node, *fd)) {
        if (node)
            node->frees_volume = ph_volume_leave(&mount->volumes, volume);
        ph_node_free(node);
        errno = ENOMEM;
        return NULL;
    }
    *fd = -1;
    node->is_submount = is_submount;
    mount->next_id++;
    ph_bound_add(&mount->node_bound);
    if (ph_bound_count(&mount->node_bound) > mount->index.buckets)
        ph_node_index_grow(&mount->index);
    ph_node_index_add(&mount->index, node);
    return node;
}

struct ph_node *ph_node_count_lookup(struct ph_mount *mount, const struct ph_node *dir,
                                     const char *name, int fd, const struct ph_status *status)
{
    struct ph_node *node;
    int opened = fd, error;

    ph_mutex_take(&mount->mutex);
    node = recognize(mount, &fd, status);
    if (!node)
        node = add_node(mount, dir, &fd, status);
    error = errno;
    if (node) {
        count_and_pin(node, dir, name);
        ph_sweep(mount, false);
    }
    ph_mutex_let_go(&mount->mutex);
    ph_relief_if_crowded(mount, opened);
    if (fd >= 0)
        close(fd);
    errno = error;
    return node;
}

void ph_node_forget(struct ph_mount *mount, uint64_t id, uint64_t count)
{
    struct ph_node *node, *done = NULL;

    ph_mutex_take(&mount->mutex);
    node = ph_node_index_find(&mount->index, id);
    if (node && node != mount->root) {
        node->lookups -= count < node->lookups ? count : node->lookups;
        if (!node->lookups) {
            ph_node_index_remove(&mount->index, node);
            ph_bound_take(&mount->node_bound, 1);
            done = ph_node_if_done(mount, node);
        }
    }
    ph_mutex_let_go(&mount->mutex);
    ph_node_free(done);
}

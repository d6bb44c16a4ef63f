/*
 * Opening evicted nodes again: by the kernel's file handle where handles are trusted, else by the
 * name that the file was last found by; see nodes.py.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mount_private.h"
#include "relief.h"

/* A path of PATH_MAX bytes has no more components. */
enum { DEEPEST = PATH_MAX / 2 };

void ph_node_found(struct ph_node *node, uint64_t dir_id, const char *name)
{
    if (node->found_in == dir_id && name && node->found_as && !strcmp(node->found_as, name))
        return;
    free(node->found_as);
    node->found_in = dir_id;
    node->found_as = name ? strdup(name) : NULL; /* without memory it has no way back by name */
}

bool ph_node_is_named(const struct ph_mount *mount, const struct ph_node *node)
{
    return node->found_as && ph_node_index_find(&mount->index, node->found_in);
}

bool ph_node_is_of(const struct ph_node *node, const struct ph_status *status)
{
    return status->mount == node->volume->mount && status->host.st_dev == node->volume->dev &&
           status->host.st_ino == node->ino && status->born_ns == node->born_ns &&
           (status->host.st_mode & S_IFMT) == node->kind;
}

/* Give an evicted node a descriptor, which is taken over; false with errno. */
static bool install(struct ph_mount *mount, struct ph_node *node, int fd)
{
    int opened = fd;
    bool resident;

    ph_mutex_take(&mount->mutex);
    resident = node->fd >= 0; /* another thread was quicker */
    if (!resident && ph_resident_add(mount, node, fd)) {
        resident = true;
        fd = -1;
        ph_sweep(mount, false);
    }
    ph_mutex_let_go(&mount->mutex);
    ph_relief_if_crowded(mount, opened);
    if (fd >= 0)
        close(fd);
    return resident;
}

/* Give a pinned node the descriptor of the entry of its directory, which is pinned and resident, if
 * that is its file. */
static bool reopen_in(struct ph_mount *mount, const struct ph_node *dir, struct ph_node *node)
{
    char name[NAME_MAX + 1] = "";
    struct ph_status status;
    bool resident;
    int fd;

    ph_mutex_take(&mount->mutex);
    resident = node->fd >= 0;
    if (node->found_as && node->found_in == dir->id)
        strncpy(name, node->found_as, NAME_MAX);
    ph_mutex_let_go(&mount->mutex);
    if (resident)
        return true;
    fd = ph_claim(&mount->descriptors, openat(dir->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (fd >= 0 && !ph_status_of(fd, &status) && ph_node_is_of(node, &status))
        return install(mount, node, fd);
    if (fd >= 0 || !ph_is_shortage(errno))
        errno = ESTALE;
    if (fd >= 0)
        close(fd);
    return false;
}

/*
 * Pin the directories that lead to an evicted node, up to the first one that is resident; returns
 * how many. 0: nothing leads to it.
 */
static int pin_way(struct ph_mount *mount, const struct ph_node *node, struct ph_node **way)
    PH_WITH(mount->mutex)
{
    const struct ph_node *at = node;
    struct ph_node *dir = NULL;
    int count = 0;

    while (count < DEEPEST && at->found_as && !(dir && dir->fd >= 0)) {
        dir = ph_node_index_find(&mount->index, at->found_in);
        if (!dir)
            break;
        dir->pins++;
        way[count++] = dir;
        at = dir;
    }
    if (dir && dir->fd >= 0)
        return count;
    while (count)
        way[--count]->pins--; /* each is known, so none is to be freed */
    return 0;
}

/* Descriptors are opened one by one, each beneath the one before, so no link is followed. */
static bool reopen_by_name(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node *way[DEEPEST];
    bool found;
    int count, error;

    ph_mutex_take(&mount->mutex);
    count = pin_way(mount, node, way);
    ph_mutex_let_go(&mount->mutex);
    found = count;
    errno = ESTALE;
    for (int i = count - 1; i >= 0; i--) {
        found = found && reopen_in(mount, way[i], i ? way[i - 1] : node);
        error = errno;
        ph_node_unpin(mount, way[i]);
        errno = error;
    }
    return found;
}

bool ph_node_reopen(struct ph_mount *mount, struct ph_node *node)
{
    bool tried = node->reopen_with && node->volume->handles == PH_TRUSTED;
    int fd = ph_volume_reopen(node->volume, &mount->descriptors, node->reopen_with);

    if (fd >= 0)
        return install(mount, node, fd);
    if (ph_is_shortage(errno) || !reopen_by_name(mount, node))
        return false;
    if (tried) /* the handle led to no file, but the file is there */
        ph_volume_distrust_handles(node->volume);
    return true;
}

void ph_node_renamed(struct ph_mount *mount, const struct ph_node *dir, const char *name)
{
    struct ph_status status;
    struct ph_node *node;

    if (ph_status_at(dir->fd, name, &status))
        return;
    ph_mutex_take(&mount->mutex);
    node = ph_node_find_by_status(mount, &status);
    if (node && ph_node_is_of(node, &status))
        ph_node_found(node, dir->id, name);
    ph_mutex_let_go(&mount->mutex);
}

struct ph_node *ph_removal_begin(struct ph_mount *mount, const struct ph_node *dir,
                                 const char *name)
{
    struct ph_status status;
    struct ph_node *node;
    bool evicted = false;

    if (ph_volume_trusts_handles(dir->volume, &mount->descriptors, dir->fd) ||
        ph_status_at(dir->fd, name, &status))
        return NULL;
    ph_mutex_take(&mount->mutex);
    node = ph_node_find_by_status(mount, &status);
    if (node) {
        node->pins++;
        evicted = node->fd < 0;
    }
    ph_mutex_let_go(&mount->mutex);
    if (evicted)
        ph_node_reopen(mount, node); /* if that fails, it is another file's, or lost already */
    return node;
}

void ph_removal_end(struct ph_mount *mount, struct ph_node *node, const struct ph_node *dir,
                    const char *name, bool removed)
{
    if (!node)
        return;
    ph_mutex_take(&mount->mutex);
    if (removed && node->found_in == dir->id && node->found_as && !strcmp(node->found_as, name))
        ph_node_found(node, 0, NULL);
    ph_mutex_let_go(&mount->mutex);
    ph_node_unpin(mount, node);
}

#include "open_files.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "mount_private.h"
#include "relief.h"

enum { FIRST_BUCKETS = 64 };

/* Close the descriptor and free the file; NULL is none. */
static void free_open_file(struct ph_open_file *opened)
{
    if (!opened)
        return;
    close(opened->fd);
    ph_mutex_destroy(&opened->position_mutex);
    free(opened);
}

bool ph_open_file_table_init(struct ph_open_file_table *table)
{
    table->buckets = FIRST_BUCKETS;
    table->next_handle = 1;
    table->by_handle = calloc(table->buckets, sizeof(struct ph_open_file *));
    return table->by_handle;
}

void ph_open_file_table_free(struct ph_open_file_table *table)
{
    for (uint64_t i = 0; table->by_handle && i < table->buckets; i++) {
        struct ph_open_file *next;

        for (struct ph_open_file *opened = table->by_handle[i]; opened; opened = next) {
            next = opened->next;
            /* A forgotten node that was open is in no other table. */
            if (!--opened->node->opens && !opened->node->known)
                ph_node_free(opened->node);
            free_open_file(opened);
        }
    }
    free(table->by_handle);
}

static struct ph_open_file **bucket_of(const struct ph_open_file_table *table, uint64_t handle)
{
    return &table->by_handle[handle & (table->buckets - 1)];
}

static void link_handle(struct ph_open_file_table *table, struct ph_open_file *opened)
{
    struct ph_open_file **bucket = bucket_of(table, opened->handle);

    opened->next = *bucket;
    *bucket = opened;
}

/* Make twice as many buckets; without memory for them the chains grow longer instead. */
static void grow(struct ph_open_file_table *table)
{
    struct ph_open_file_table old = *table;
    struct ph_open_file **by_handle = calloc(old.buckets * 2, sizeof(struct ph_open_file *));

    if (!by_handle)
        return;
    table->by_handle = by_handle;
    table->buckets = old.buckets * 2;
    for (uint64_t i = 0; i < old.buckets; i++) {
        struct ph_open_file *next;

        for (struct ph_open_file *opened = old.by_handle[i]; opened; opened = next) {
            next = opened->next;
            link_handle(table, opened);
        }
    }
    free(old.by_handle);
}

PH_ALONE static struct ph_open_file *new_open_file(struct ph_node *node, int fd, enum ph_kind kind)
{
    struct ph_open_file *opened = calloc(1, sizeof(*opened));

    if (!opened)
        return NULL;
    ph_mutex_init(&opened->position_mutex);
    opened->fd = fd;
    opened->position = PH_NOWHERE;
    opened->kind = kind;
    opened->node = node;
    return opened;
}

uint64_t ph_open_file_add(struct ph_mount *mount, struct ph_node *node, int fd, enum ph_kind kind)
{
    struct ph_open_file_table *table = &mount->open_files;
    struct ph_open_file *opened = new_open_file(node, fd, kind);
    uint64_t handle;

    if (!opened) {
        close(fd);
        errno = ENOMEM;
        return 0;
    }
    ph_relief_if_crowded(mount, fd);
    ph_mutex_take(&mount->mutex);
    if (!ph_bound_has_room(&mount->open_file_bound) || !ph_is_for_files(&mount->descriptors, fd)) {
        ph_mutex_let_go(&mount->mutex);
        free_open_file(opened);
        errno = EMFILE;
        return 0;
    }
    node->opens++;
    opened->known = true;
    handle = opened->handle = table->next_handle++;
    ph_bound_add(&mount->open_file_bound);
    if (ph_bound_count(&mount->open_file_bound) > table->buckets)
        grow(table);
    link_handle(table, opened);
    ph_mutex_let_go(&mount->mutex);
    return handle; /* opened may be gone: a guest can guess the handle and close the file */
}

struct ph_open_file *ph_open_file_pin(struct ph_mount *mount, uint64_t handle, enum ph_kind kind)
{
    struct ph_open_file *opened;

    ph_mutex_take(&mount->mutex);
    opened = *bucket_of(&mount->open_files, handle);
    while (opened && opened->handle != handle)
        opened = opened->next;
    if (opened && opened->kind == kind)
        opened->pins++;
    else
        opened = NULL;
    ph_mutex_let_go(&mount->mutex);
    if (!opened)
        errno = EBADF;
    return opened;
}

/* Whether the file is to be freed: the guest has closed it and nobody uses it. *node becomes its
 * node if that is to be freed as well. */
static bool is_done(struct ph_mount *mount, struct ph_open_file *opened, struct ph_node **node)
    PH_WITH(mount->mutex)
{
    if (opened->known || opened->pins)
        return false;
    opened->node->opens--;
    *node = ph_node_if_done(mount, opened->node);
    return true;
}

void ph_open_file_unpin(struct ph_mount *mount, struct ph_open_file *opened)
{
    struct ph_node *node = NULL;
    bool done;

    ph_mutex_take(&mount->mutex);
    opened->pins--;
    done = is_done(mount, opened, &node);
    ph_mutex_let_go(&mount->mutex);
    if (done)
        free_open_file(opened);
    ph_node_free(node);
}

static bool remove_open_file(struct ph_mount *mount, uint64_t handle, enum ph_kind kind,
                             bool posix_locked_too)
{
    struct ph_node *node = NULL;
    struct ph_open_file **at, *opened;
    bool found, done = false;

    ph_mutex_take(&mount->mutex);
    at = bucket_of(&mount->open_files, handle);
    while (*at && (*at)->handle != handle)
        at = &(*at)->next;
    opened = *at;
    found = opened && opened->kind == kind &&
            (posix_locked_too || !ph_open_file_is_posix_locked(opened));
    if (found) {
        *at = opened->next;
        opened->known = false;
        ph_bound_take(&mount->open_file_bound, 1);
        done = is_done(mount, opened, &node);
    }
    ph_mutex_let_go(&mount->mutex);
    if (done)
        free_open_file(opened);
    ph_node_free(node);
    return found;
}

bool ph_open_file_remove(struct ph_mount *mount, uint64_t handle, enum ph_kind kind)
{
    return remove_open_file(mount, handle, kind, true);
}

bool ph_open_file_remove_unless_posix_locked(struct ph_mount *mount, uint64_t handle,
                                             enum ph_kind kind)
{
    return remove_open_file(mount, handle, kind, false);
}

bool ph_open_file_has_room(struct ph_mount *mount)
{
    return ph_bound_has_room(&mount->open_file_bound);
}

int ph_open_file_fd(const struct ph_open_file *opened)
{
    return opened->fd;
}

struct ph_node *ph_open_file_node(const struct ph_open_file *opened)
{
    return opened->node;
}

void ph_open_file_mark_posix_locked(struct ph_open_file *opened)
{
    atomic_store(&opened->node->posix_locked, true);
}

bool ph_open_file_is_posix_locked(const struct ph_open_file *opened)
{
    return atomic_load(&opened->node->posix_locked);
}

int64_t ph_directory_lock(struct ph_open_file *opened)
{
    ph_mutex_take(&opened->position_mutex);
    return opened->position;
}

void ph_directory_unlock_at(struct ph_open_file *opened, int64_t position)
{
    opened->position = position;
    ph_mutex_let_go(&opened->position_mutex);
}

void ph_directory_unlock(struct ph_open_file *opened)
{
    ph_directory_unlock_at(opened, PH_NOWHERE);
}

#include "volumes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HANDLE_BYTES = 128 };

struct ph_volume *ph_volume_find(struct ph_volume *volumes, const struct ph_status *status)
{
    while (volumes && (volumes->mount != status->mount || volumes->dev != status->host.st_dev))
        volumes = volumes->next;
    return volumes;
}

struct ph_volume *ph_volume_find_or_add(struct ph_volume **volumes, const struct ph_status *status)
{
    struct ph_volume *volume = ph_volume_find(*volumes, status);

    if (volume)
        return volume;
    volume = malloc(sizeof(*volume));
    if (!volume)
        return NULL;
    *volume = (struct ph_volume){
        .mount = status->mount,
        .dev = status->host.st_dev,
        .anchor = -1,
        .next = *volumes,
    };
    *volumes = volume;
    return volume;
}

bool ph_volume_leave(struct ph_volume **volumes, struct ph_volume *volume)
{
    if (--volume->nodes)
        return false;
    while (*volumes != volume)
        volumes = &(*volumes)->next;
    *volumes = volume->next;
    return true;
}

void ph_volume_free(struct ph_volume *volume)
{
    int anchor = atomic_load(&volume->anchor);

    if (anchor >= 0)
        close(anchor);
    free(volume);
}

/* open_by_handle_at(2) needs an ordinary descriptor of any file on the mount. */
static bool has_anchor(struct ph_volume *volume, const struct ph_descriptors *descriptors, int fd)
{
    struct stat status;
    int anchor, none = -1;

    if (atomic_load(&volume->anchor) >= 0)
        return true;
    /* Opening a FIFO, a device or a socket would have an effect. */
    if (fstat(fd, &status) || (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)))
        return false;
    anchor = ph_open_via_proc(descriptors, fd, O_RDONLY | O_NONBLOCK);
    if (anchor >= 0 && !atomic_compare_exchange_strong(&volume->anchor, &none, anchor))
        close(anchor); /* another thread was quicker */
    return atomic_load(&volume->anchor) >= 0;
}

static struct file_handle *handle_of(int fd)
{
    _Alignas(struct file_handle) unsigned char room[sizeof(struct file_handle) + HANDLE_BYTES];
    struct file_handle *with = (void *)room, *kept;
    size_t bytes;
    int mount_id;

    with->handle_bytes = HANDLE_BYTES;
    if (name_to_handle_at(fd, "", with, &mount_id, AT_EMPTY_PATH))
        return NULL;
    bytes = sizeof(*with) + with->handle_bytes;
    kept = malloc(bytes); /* as many as there are nodes, so not one byte more */
    return kept ? memcpy(kept, with, bytes) : NULL;
}

static int open_handle(const struct ph_volume *volume, const struct ph_descriptors *descriptors,
                       struct file_handle *with)
{
    return ph_claim(descriptors,
                    open_by_handle_at(atomic_load(&volume->anchor), with, O_PATH | O_CLOEXEC));
}

bool ph_volume_trusts_handles(struct ph_volume *volume, const struct ph_descriptors *descriptors,
                              int fd)
{
    struct file_handle *with;
    int untried = PH_UNTRIED, again;

    if (atomic_load(&volume->handles) != PH_UNTRIED)
        return atomic_load(&volume->handles) == PH_TRUSTED;
    /* Without the id of its mount, a file could be opened again through another one. */
    if (!volume->mount || !has_anchor(volume, descriptors, fd))
        return false;
    with = handle_of(fd);
    again = with ? open_handle(volume, descriptors, with) : -1;
    if (again >= 0 || !ph_is_shortage(errno))
        atomic_compare_exchange_strong(&volume->handles, &untried,
                                       again >= 0 ? PH_TRUSTED : PH_DISTRUSTED);
    if (again >= 0)
        close(again);
    free(with);
    return atomic_load(&volume->handles) == PH_TRUSTED;
}

void ph_volume_distrust_handles(struct ph_volume *volume)
{
    atomic_store(&volume->handles, PH_DISTRUSTED);
}

struct file_handle *ph_volume_prepare(struct ph_volume *volume,
                                      const struct ph_descriptors *descriptors, int fd)
{
    return ph_volume_trusts_handles(volume, descriptors, fd) ? handle_of(fd) : NULL;
}

int ph_volume_reopen(const struct ph_volume *volume, const struct ph_descriptors *descriptors,
                     struct file_handle *with)
{
    if (!with || atomic_load(&volume->handles) != PH_TRUSTED) {
        errno = ESTALE;
        return -1;
    }
    return open_handle(volume, descriptors, with);
}

bool ph_is_same_file(const struct file_handle *a, const struct file_handle *b)
{
    return a && b && a->handle_type == b->handle_type && a->handle_bytes == b->handle_bytes &&
           !memcmp(a->f_handle, b->f_handle, a->handle_bytes);
}

#include "reopening.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HANDLE_BYTES = 128 };

/* An ordinary descriptor of something on a file system, for open_by_handle_at(2). */
struct ph_anchor {
    uint64_t dev;
    int fd;
    struct ph_anchor *next;
};

void ph_reopener_init(struct ph_reopener *reopener, const struct ph_descriptors *descriptors)
{
    reopener->descriptors = descriptors;
    atomic_init(&reopener->anchors, NULL);
}

void ph_reopener_free(struct ph_reopener *reopener)
{
    struct ph_anchor *next;

    for (struct ph_anchor *anchor = atomic_load(&reopener->anchors); anchor; anchor = next) {
        next = anchor->next;
        close(anchor->fd);
        free(anchor);
    }
}

static struct ph_anchor *find_anchor(struct ph_reopener *reopener, uint64_t dev)
{
    struct ph_anchor *anchor = atomic_load(&reopener->anchors);

    while (anchor && anchor->dev != dev)
        anchor = anchor->next;
    return anchor;
}

static bool add_anchor(struct ph_reopener *reopener, int fd, uint64_t dev)
{
    struct ph_anchor *anchor;
    struct stat status;

    /* Opening a FIFO, a device or a socket would have an effect. */
    if (fstat(fd, &status) || (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)))
        return false;
    anchor = malloc(sizeof(*anchor));
    if (!anchor)
        return false;
    anchor->dev = dev;
    anchor->fd = ph_open_via_proc(reopener->descriptors, fd, O_RDONLY | O_NONBLOCK);
    if (anchor->fd < 0) {
        free(anchor);
        return false;
    }
    /* Two threads may add one each: the second is of no use, and does no harm. */
    anchor->next = atomic_load(&reopener->anchors);
    while (!atomic_compare_exchange_weak(&reopener->anchors, &anchor->next, anchor))
        continue;
    return true;
}

struct file_handle *ph_reopener_prepare(struct ph_reopener *reopener, int fd, uint64_t dev)
{
    struct file_handle *with;
    int mount_id;

    if (!find_anchor(reopener, dev) && !add_anchor(reopener, fd, dev))
        return NULL;
    with = malloc(sizeof(*with) + HANDLE_BYTES);
    if (!with)
        return NULL;
    with->handle_bytes = HANDLE_BYTES;
    if (name_to_handle_at(fd, "", with, &mount_id, AT_EMPTY_PATH)) {
        free(with);
        return NULL;
    }
    return with;
}

int ph_reopener_reopen(struct ph_reopener *reopener, uint64_t dev, struct file_handle *with)
{
    struct ph_anchor *anchor = find_anchor(reopener, dev);

    if (!anchor || !with) {
        errno = ESTALE;
        return -1;
    }
    return ph_claim(reopener->descriptors, open_by_handle_at(anchor->fd, with, O_PATH | O_CLOEXEC));
}

bool ph_is_same_file(const struct file_handle *a, const struct file_handle *b)
{
    return a && b && a->handle_type == b->handle_type && a->handle_bytes == b->handle_bytes &&
           !memcmp(a->f_handle, b->f_handle, a->handle_bytes);
}

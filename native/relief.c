#include "relief.h"

#include "mount_private.h"

static struct ph_mutex mutex = {PTHREAD_MUTEX_INITIALIZER};
static struct ph_mount *first PH_GUARDED_BY(mutex);

void ph_relief_add(struct ph_mount *mount)
{
    ph_mutex_take(&mutex);
    mount->next = first;
    first = mount;
    ph_mutex_let_go(&mutex);
}

void ph_relief_remove(struct ph_mount *mount)
{
    ph_mutex_take(&mutex);
    for (struct ph_mount **at = &first; *at; at = &(*at)->next) {
        if (*at == mount) {
            *at = mount->next;
            break;
        }
    }
    ph_mutex_let_go(&mutex);
}

/* Returns the mount with most resident nodes, with a reference; NULL: none has any. */
static struct ph_mount *retain_largest(void)
{
    struct ph_mount *largest = NULL;

    ph_mutex_take(&mutex);
    for (struct ph_mount *mount = first; mount; mount = mount->next) {
        if (mount->resident_count > (largest ? largest->resident_count : 0))
            largest = mount;
    }
    if (largest && !ph_mount_retain_if_used(largest))
        largest = NULL; /* it gives all of them up right now */
    ph_mutex_let_go(&mutex);
    return largest;
}

void ph_relief_if_crowded(struct ph_mount *mount, int fd)
{
    struct ph_mount *largest;

    if (!ph_is_crowded(&mount->descriptors, fd))
        return;
    largest = retain_largest();
    if (!largest)
        return;
    ph_mutex_take(&largest->mutex);
    ph_sweep(largest, true);
    ph_mutex_let_go(&largest->mutex);
    ph_mount_release(largest);
}

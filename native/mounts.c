#include "mounts.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct entry {
    uint64_t slot;
    struct ph_mount *mount;
    struct entry *next;
};

struct ph_mounts {
    pthread_mutex_t mutex;
    struct entry *entries; /* guarded by the mutex */
    atomic_ullong changes; /* how often the entries were changed; written with the mutex */
};

struct ph_mounts *ph_mounts_new(void)
{
    struct ph_mounts *mounts = calloc(1, sizeof(*mounts));

    if (mounts)
        pthread_mutex_init(&mounts->mutex, NULL);
    return mounts;
}

bool ph_mounts_put(struct ph_mounts *mounts, uint64_t slot, struct ph_mount *mount)
{
    struct entry **at, *fresh = NULL, *before;

    if (mount) {
        fresh = malloc(sizeof(*fresh));
        if (!fresh)
            return false;
        ph_mount_retain(mount);
        *fresh = (struct entry){.slot = slot, .mount = mount};
    }
    pthread_mutex_lock(&mounts->mutex);
    at = &mounts->entries;
    while (*at && (*at)->slot != slot)
        at = &(*at)->next;
    before = *at;
    if (before)
        *at = before->next;
    if (fresh) {
        fresh->next = mounts->entries;
        mounts->entries = fresh;
    }
    atomic_fetch_add_explicit(&mounts->changes, 1, memory_order_release);
    pthread_mutex_unlock(&mounts->mutex);
    if (before) {
        ph_mount_release(before->mount);
        free(before);
    }
    return true;
}

void ph_mounts_free(struct ph_mounts *mounts)
{
    while (mounts->entries)
        ph_mounts_put(mounts, mounts->entries->slot, NULL);
    pthread_mutex_destroy(&mounts->mutex);
    free(mounts);
}

/* The mount in a slot, with a reference. */
static struct ph_mount *retain(struct ph_mounts *mounts, uint64_t slot)
{
    struct ph_mount *mount = NULL;
    struct entry *entry;

    pthread_mutex_lock(&mounts->mutex);
    entry = mounts->entries;
    while (entry && entry->slot != slot)
        entry = entry->next;
    if (entry) {
        mount = entry->mount;
        ph_mount_retain(mount);
    }
    pthread_mutex_unlock(&mounts->mutex);
    return mount;
}

static void let_go(struct ph_mount **held)
{
    if (*held)
        ph_mount_release(*held);
    *held = NULL;
}

void ph_mount_holds_let_go(struct ph_mount_holds *holds)
{
    for (int i = 0; i < PH_HELD_MOUNTS; i++)
        let_go(&holds->held[i].mount);
}

struct ph_mount *ph_mount_holds_find(struct ph_mount_holds *holds, uint64_t slot)
{
    uint64_t changes = atomic_load_explicit(&holds->mounts->changes, memory_order_acquire);
    uint64_t place = slot % PH_HELD_MOUNTS;

    if (holds->changes != changes) {
        ph_mount_holds_let_go(holds);
        holds->changes = changes;
    }
    if (!holds->held[place].mount || holds->held[place].slot != slot) {
        let_go(&holds->held[place].mount);
        holds->held[place].mount = retain(holds->mounts, slot);
        holds->held[place].slot = slot;
    }
    return holds->held[place].mount;
}

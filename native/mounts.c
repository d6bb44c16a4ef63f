#include "mounts.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "mutex.h"

struct entry {
    uint64_t slot;
    struct ph_mount *mount;
    struct entry *next;
};

struct ph_mounts {
    atomic_ullong changes; /* how often the entries were changed; written with the mutex */
    struct ph_mutex mutex;
    struct entry *entries PH_GUARDED_BY(mutex);
};

struct ph_mounts *ph_mounts_new(void)
{
    struct ph_mounts *mounts = calloc(1, sizeof(*mounts));

    if (mounts)
        ph_mutex_init(&mounts->mutex);
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
    ph_mutex_take(&mounts->mutex);
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
    ph_mutex_let_go(&mounts->mutex);
    if (before) {
        ph_mount_release(before->mount);
        free(before);
    }
    return true;
}

PH_ALONE void ph_mounts_free(struct ph_mounts *mounts)
{
    while (mounts->entries)
        ph_mounts_put(mounts, mounts->entries->slot, NULL);
    ph_mutex_destroy(&mounts->mutex);
    free(mounts);
}

/* The mount in a slot, with a reference. */
static struct ph_mount *retain(struct ph_mounts *mounts, uint64_t slot)
{
    struct ph_mount *mount = NULL;
    struct entry *entry;

    ph_mutex_take(&mounts->mutex);
    entry = mounts->entries;
    while (entry && entry->slot != slot)
        entry = entry->next;
    if (entry) {
        mount = entry->mount;
        ph_mount_retain(mount);
    }
    ph_mutex_let_go(&mounts->mutex);
    return mount;
}

static void release(struct ph_mount **cached)
{
    if (*cached)
        ph_mount_release(*cached);
    *cached = NULL;
}

void ph_mount_cache_release(struct ph_mount_cache *cache)
{
    for (int i = 0; i < PH_CACHED_MOUNTS; i++)
        release(&cache->cached[i].mount);
}

struct ph_mount *ph_mount_cache_find(struct ph_mount_cache *cache, uint64_t slot)
{
    uint64_t changes = atomic_load_explicit(&cache->mounts->changes, memory_order_acquire);
    uint64_t place = slot % PH_CACHED_MOUNTS;

    if (cache->changes != changes) {
        ph_mount_cache_release(cache);
        cache->changes = changes;
    }
    if (!cache->cached[place].mount || cache->cached[place].slot != slot) {
        release(&cache->cached[place].mount);
        cache->cached[place].mount = retain(cache->mounts, slot);
        cache->cached[place].slot = slot;
    }
    return cache->cached[place].mount;
}

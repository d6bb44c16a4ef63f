#include "serve.h"

/* Serve the next chain; false leaves it in the ring. */
static bool serve_one(struct ph_ring *ring, struct ph_worker *worker, struct ph_mount_cache *cache)
{
    struct fuse_in_header header;
    int64_t written = PH_PYTHON;
    struct ph_mount *mount;
    struct ph_chain chain;

    if (!ph_ring_take(ring, &chain))
        return false;
    if (ph_fuse_read_header(&chain, &header) &&
        (mount = ph_mount_cache_find(cache, header.nodeid >> PH_SLOT_SHIFT)))
        written = ph_fuse_dispatch(worker, mount, &chain, &header);
    if (written == PH_PYTHON) {
        ph_ring_put_back(ring, &chain);
        return false;
    }
    ph_ring_push(ring, (uint32_t)written);
    return true;
}

static void before_sleep(void *cache)
{
    ph_mount_cache_release(cache);
}

static enum ph_outcome serve(struct ph_ring *ring, struct ph_worker *worker,
                             struct ph_mount_cache *cache)
{
    while (!ph_ring_is_stopped(ring)) {
        enum ph_wait wait;

        switch (ph_ring_look(ring)) {
        case PH_LOOK_CHAIN:
            if (!serve_one(ring, worker, cache))
                return PH_OUTCOME_PYTHON;
            continue;
        case PH_LOOK_PYTHON:
            return PH_OUTCOME_PYTHON;
        case PH_LOOK_NOTHING:
            break;
        }
        wait = ph_ring_wait(ring, before_sleep, cache);
        if (wait == PH_WAIT_PYTHON)
            return PH_OUTCOME_PYTHON;
        if (wait == PH_WAIT_WOKEN)
            return PH_OUTCOME_WOKEN;
    }
    return PH_OUTCOME_STOPPED;
}

int ph_serve(struct ph_ring *ring, struct ph_worker *worker, struct ph_mounts *mounts)
{
    struct ph_mount_cache cache = {.mounts = mounts};
    enum ph_outcome outcome = serve(ring, worker, &cache);

    ph_mount_cache_release(&cache);
    return (int)outcome;
}

#include "serve.h"

/* Serve the next chain; false leaves it in the ring. */
static bool serve_one(struct ph_queue *queue, struct ph_worker *worker,
                      struct ph_mount_cache *cache)
{
    struct fuse_in_header header;
    int64_t written = PH_PYTHON;
    struct ph_mount *mount;
    struct ph_chain chain;

    if (!ph_queue_take(queue, &chain))
        return false;
    if (ph_fuse_read_header(&chain, &header) &&
        (mount = ph_mount_cache_find(cache, header.nodeid >> PH_SLOT_SHIFT)))
        written = ph_fuse_dispatch(worker, mount, &chain, &header);
    if (written == PH_PYTHON) {
        ph_queue_put_back(queue, &chain);
        return false;
    }
    ph_queue_push(queue, (uint32_t)written);
    return true;
}

static void before_sleep(void *cache)
{
    ph_mount_cache_release(cache);
}

static enum ph_outcome serve(struct ph_queue *queue, struct ph_worker *worker,
                             struct ph_mount_cache *cache)
{
    while (!ph_queue_is_stopped(queue)) {
        enum ph_wait wait;

        switch (ph_queue_look(queue)) {
        case PH_LOOK_CHAIN:
            if (!serve_one(queue, worker, cache))
                return PH_OUTCOME_PYTHON;
            continue;
        case PH_LOOK_PYTHON:
            return PH_OUTCOME_PYTHON;
        case PH_LOOK_NOTHING:
            break;
        }
        wait = ph_queue_wait(queue, before_sleep, cache);
        if (wait == PH_WAIT_PYTHON)
            return PH_OUTCOME_PYTHON;
        if (wait == PH_WAIT_WOKEN)
            return PH_OUTCOME_WOKEN;
    }
    return PH_OUTCOME_STOPPED;
}

int ph_serve(struct ph_queue *queue, struct ph_worker *worker, struct ph_mounts *mounts)
{
    struct ph_mount_cache cache = {.mounts = mounts};
    enum ph_outcome outcome = serve(queue, worker, &cache);

    ph_mount_cache_release(&cache);
    return (int)outcome;
}

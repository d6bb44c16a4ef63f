#include "serve.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { HELD = 8 };

struct share {
    uint64_t slot;
    struct ph_mount *mount;
    struct share *next;
};

struct ph_mounts {
    pthread_mutex_t mutex;
    struct share *shares;
    atomic_ullong changes;
};

/* What a queue has mounted as long as it does not sleep: the shares that it served last. */
struct hold {
    struct ph_mounts *mounts;
    uint64_t changes;
    struct share held[HELD];
};

struct ph_mounts *ph_mounts_new(void)
{
    struct ph_mounts *mounts = calloc(1, sizeof(*mounts));

    if (mounts && pthread_mutex_init(&mounts->mutex, NULL)) {
        free(mounts);
        return NULL;
    }
    return mounts;
}

bool ph_mounts_put(struct ph_mounts *mounts, uint64_t slot, struct ph_mount *mount)
{
    struct share **at = &mounts->shares, *share = NULL, *before;

    if (mount && !(share = malloc(sizeof(*share))))
        return false;
    if (mount) {
        ph_mount_retain(mount);
        *share = (struct share){.slot = slot, .mount = mount};
    }
    pthread_mutex_lock(&mounts->mutex);
    while (*at && (*at)->slot != slot)
        at = &(*at)->next;
    before = *at;
    if (before)
        *at = before->next;
    if (share) {
        share->next = mounts->shares;
        mounts->shares = share;
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
    while (mounts->shares)
        ph_mounts_put(mounts, mounts->shares->slot, NULL);
    pthread_mutex_destroy(&mounts->mutex);
    free(mounts);
}

struct ph_worker *ph_worker_new(void)
{
    struct ph_worker *worker = calloc(1, sizeof(*worker));

    if (worker && !ph_worker_init(worker)) {
        free(worker);
        return NULL;
    }
    return worker;
}

void ph_worker_delete(struct ph_worker *worker)
{
    ph_worker_free(worker);
    free(worker);
}

static void drop(struct share *held)
{
    if (held->mount)
        ph_mount_release(held->mount);
    held->mount = NULL;
}

static void let_go(void *context)
{
    struct hold *hold = context;

    for (int i = 0; i < HELD; i++)
        drop(&hold->held[i]);
}

/*
 * What is mounted now. A share that was removed is let go of with the next request, whichever share
 * that is for.
 */
static struct ph_mount *mounted(struct hold *hold, uint64_t slot)
{
    uint64_t changes = atomic_load_explicit(&hold->mounts->changes, memory_order_acquire);
    struct share *held = &hold->held[slot % HELD];

    if (hold->changes != changes) {
        let_go(hold);
        hold->changes = changes;
    }
    if (!held->mount || held->slot != slot) {
        struct share *share;

        drop(held);
        pthread_mutex_lock(&hold->mounts->mutex);
        share = hold->mounts->shares;
        while (share && share->slot != slot)
            share = share->next;
        if (share) {
            ph_mount_retain(share->mount);
            *held = *share;
        }
        pthread_mutex_unlock(&hold->mounts->mutex);
    }
    return held->mount;
}

/* Serve the next chain; false leaves it in the ring. */
static bool serve_one(struct ph_ring *ring, struct ph_worker *worker, struct hold *hold)
{
    struct fuse_in_header header;
    int64_t written = PH_PYTHON;
    struct ph_chain chain;
    struct ph_mount *mount;

    if (!ph_ring_take(ring, &chain))
        return false;
    if (ph_fuse_read_header(&chain, &header) &&
        (mount = mounted(hold, header.nodeid >> PH_SLOT_SHIFT)))
        written = ph_fuse_dispatch(worker, mount, &chain, &header);
    if (written == PH_PYTHON) {
        ph_ring_put_back(ring, &chain);
        return false;
    }
    ph_ring_push(ring, (uint32_t)written);
    return true;
}

static enum ph_outcome serve(struct ph_ring *ring, struct ph_worker *worker, struct hold *hold)
{
    while (!ph_ring_is_stopped(ring)) {
        enum ph_wait wait;

        switch (ph_ring_look(ring)) {
        case PH_LOOK_CHAIN:
            if (!serve_one(ring, worker, hold))
                return PH_OUTCOME_PYTHON;
            continue;
        case PH_LOOK_PYTHON:
            return PH_OUTCOME_PYTHON;
        case PH_LOOK_NOTHING:
            break;
        }
        wait = ph_ring_wait(ring, let_go, hold);
        if (wait == PH_WAIT_PYTHON)
            return PH_OUTCOME_PYTHON;
        if (wait == PH_WAIT_WOKEN)
            return PH_OUTCOME_WOKEN;
    }
    return PH_OUTCOME_STOPPED;
}

int ph_serve(struct ph_ring *ring, struct ph_worker *worker, struct ph_mounts *mounts)
{
    struct hold hold = {.mounts = mounts};
    enum ph_outcome outcome = serve(ring, worker, &hold);

    let_go(&hold);
    return (int)outcome;
}

static bool see(struct ph_node *node, struct ph_seen *seen)
{
    if (!node)
        return false;
    *seen = (struct ph_seen){
        .id = ph_node_id(node),
        .pin = node,
        .fd = ph_node_fd(node),
        .node_fd = ph_node_fd(node),
        .kind = ph_node_kind(node),
    };
    return true;
}

bool ph_see_node(struct ph_mount *mount, uint64_t id, struct ph_seen *seen)
{
    return see(ph_node_pin(mount, id), seen);
}

bool ph_see_held(struct ph_mount *mount, int fd, struct ph_seen *seen)
{
    struct stat status;

    if (fstat(fd, &status)) {
        int error = errno;

        close(fd);
        errno = error;
        return false;
    }
    return see(ph_node_hold(mount, fd, &status, ph_mount_rules(mount)), seen);
}

bool ph_see_open_file(struct ph_mount *mount, uint64_t handle, uint32_t kind, struct ph_seen *seen)
{
    struct ph_open_file *opened = ph_open_file_pin(mount, handle, kind);

    if (!opened)
        return false;
    see(ph_open_file_node(opened), seen);
    seen->pin = opened;
    seen->fd = ph_open_file_fd(opened);
    return true;
}

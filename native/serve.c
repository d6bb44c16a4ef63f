#include "serve.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { HELD = 8 };

struct share {
    uint64_t slot;
    struct ph_fs *fs;
    struct share *next;
};

struct ph_mount {
    pthread_mutex_t lock;
    struct share *shares;
    atomic_ullong changes;
};

/* What a queue has mounted as long as it does not sleep: the shares that it served last. */
struct hold {
    struct ph_mount *mount;
    uint64_t changes;
    struct share held[HELD];
};

uint32_t ph_abi(void)
{
    return PH_ABI;
}

struct ph_mount *ph_mount_new(void)
{
    struct ph_mount *mount = calloc(1, sizeof(*mount));

    if (mount && pthread_mutex_init(&mount->lock, NULL)) {
        free(mount);
        return NULL;
    }
    return mount;
}

bool ph_mount_set(struct ph_mount *mount, uint64_t slot, struct ph_fs *fs)
{
    struct share **at = &mount->shares, *share = NULL, *before;

    if (fs && !(share = malloc(sizeof(*share))))
        return false;
    if (fs) {
        ph_fs_retain(fs);
        *share = (struct share){.slot = slot, .fs = fs};
    }
    pthread_mutex_lock(&mount->lock);
    while (*at && (*at)->slot != slot)
        at = &(*at)->next;
    before = *at;
    if (before)
        *at = before->next;
    if (share) {
        share->next = mount->shares;
        mount->shares = share;
    }
    atomic_fetch_add_explicit(&mount->changes, 1, memory_order_release);
    pthread_mutex_unlock(&mount->lock);
    if (before) {
        ph_fs_release(before->fs);
        free(before);
    }
    return true;
}

void ph_mount_free(struct ph_mount *mount)
{
    while (mount->shares)
        ph_mount_set(mount, mount->shares->slot, NULL);
    pthread_mutex_destroy(&mount->lock);
    free(mount);
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
    if (held->fs)
        ph_fs_release(held->fs);
    held->fs = NULL;
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
static struct ph_fs *mounted(struct hold *hold, uint64_t slot)
{
    uint64_t changes = atomic_load_explicit(&hold->mount->changes, memory_order_acquire);
    struct share *held = &hold->held[slot % HELD];

    if (hold->changes != changes) {
        let_go(hold);
        hold->changes = changes;
    }
    if (!held->fs || held->slot != slot) {
        struct share *share;

        drop(held);
        pthread_mutex_lock(&hold->mount->lock);
        share = hold->mount->shares;
        while (share && share->slot != slot)
            share = share->next;
        if (share) {
            ph_fs_retain(share->fs);
            *held = *share;
        }
        pthread_mutex_unlock(&hold->mount->lock);
    }
    return held->fs;
}

/* Serve the next chain; false leaves it in the ring. */
static bool serve_one(struct ph_ring *ring, struct ph_worker *worker, struct hold *hold)
{
    struct fuse_in_header header;
    int64_t written = PH_COLD;
    struct ph_chain chain;
    struct ph_fs *fs;

    if (!ph_ring_take(ring, &chain))
        return false;
    if (ph_fuse_read_header(&chain, &header) &&
        (fs = mounted(hold, header.nodeid >> PH_SLOT_SHIFT)))
        written = ph_fuse_dispatch(worker, fs, &chain, &header);
    if (written == PH_COLD) {
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
                return PH_FOR_PYTHON;
            continue;
        case PH_LOOK_ODD:
            return PH_FOR_PYTHON;
        case PH_LOOK_NOTHING:
            break;
        }
        wait = ph_ring_wait(ring, let_go, hold);
        if (wait == PH_WAIT_ODD)
            return PH_FOR_PYTHON;
        if (wait == PH_WAIT_WOKEN)
            return PH_WOKEN;
    }
    return PH_STOPPED;
}

int ph_serve(struct ph_ring *ring, struct ph_worker *worker, struct ph_mount *mount)
{
    struct hold hold = {.mount = mount};
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

bool ph_see_node(struct ph_fs *fs, uint64_t id, struct ph_seen *seen)
{
    return see(ph_node_pin(fs, id), seen);
}

bool ph_see_held(struct ph_fs *fs, int fd, struct ph_seen *seen)
{
    struct stat status;

    if (fstat(fd, &status)) {
        int error = errno;

        close(fd);
        errno = error;
        return false;
    }
    return see(ph_node_hold(fs, fd, &status, ph_fs_rules(fs)), seen);
}

bool ph_see_handle(struct ph_fs *fs, uint64_t number, uint32_t kind, struct ph_seen *seen)
{
    struct ph_handle *handle = ph_handle_pin(fs, number, kind);

    if (!handle)
        return false;
    see(ph_handle_node(handle), seen);
    seen->pin = handle;
    seen->fd = ph_handle_fd(handle);
    return true;
}

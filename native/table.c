#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SWEEP_STEPS = 16,
    FIRST_BUCKETS = 64,
    HANDLE_BYTES = 128,
};

struct ph_node {
    uint64_t id;
    uint64_t dev;
    uint64_t ino;
    uint64_t lookups;
    const struct ph_rules *rules;
    struct file_handle *handle; /* made when the node first becomes idle */
    struct ph_node *next_by_id;
    struct ph_node *next_by_key;
    uint32_t place; /* in fs->in_use */
    uint32_t pins;
    uint32_t opens;
    uint32_t kind;
    int fd;     /* -1: idle */
    bool known; /* found by its id */
    bool keyed; /* found by its inode */
    bool recently;
    atomic_bool locked;
};

struct ph_handle {
    uint64_t number;
    struct ph_node *node;
    struct ph_handle *next;
    pthread_mutex_t lock;
    int64_t position; /* of the descriptor, of a directory; the lock is held */
    uint32_t pins;
    int fd;
    enum ph_kind kind;
    bool known;
};

/* An ordinary descriptor of something on a file system, for open_by_handle_at(2). */
struct anchor {
    uint64_t dev;
    int fd;
    struct anchor *next;
};

struct ph_fs {
    struct ph_rules rules;
    pthread_mutex_t lock;
    atomic_uint references;
    struct ph_node *root;
    struct ph_node **by_id;
    struct ph_node **by_key;
    uint64_t buckets; /* of by_id and by_key each; a power of two */
    atomic_ullong count;
    uint64_t limit;
    uint64_t next_id;
    struct ph_node **in_use; /* nodes besides the root that have a descriptor */
    uint32_t in_use_count;
    uint32_t in_use_room;
    uint32_t most_in_use;
    uint32_t hand;
    struct ph_handle **handles;
    uint64_t handle_buckets;
    atomic_ullong handle_count;
    uint64_t handle_limit;
    uint64_t next_handle;
    struct anchor *_Atomic anchors;
    int descriptor_limit;
    int proc_fd;
    bool may_switch;
    bool rests; /* whether idle nodes can be found again */
};

/* Descriptors are closed and memory is freed when the lock is not held. */
struct rubbish {
    struct ph_node *node;
    struct ph_handle *handle;
    int fd;
};

static void clear_away(const struct rubbish *rubbish)
{
    if (rubbish->fd >= 0)
        close(rubbish->fd);
    if (rubbish->handle) {
        close(rubbish->handle->fd);
        pthread_mutex_destroy(&rubbish->handle->lock);
        free(rubbish->handle);
    }
    if (rubbish->node) {
        if (rubbish->node->fd >= 0)
            close(rubbish->node->fd);
        free(rubbish->node->handle);
        free(rubbish->node);
    }
}

static uint64_t key_hash(uint64_t dev, uint64_t ino)
{
    uint64_t mixed = (ino + dev * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;

    return mixed ^ mixed >> 32;
}

static struct ph_node **id_bucket(struct ph_fs *fs, uint64_t id)
{
    return &fs->by_id[id & (fs->buckets - 1)];
}

static struct ph_node **key_bucket(struct ph_fs *fs, uint64_t dev, uint64_t ino)
{
    return &fs->by_key[key_hash(dev, ino) & (fs->buckets - 1)];
}

static struct ph_node *find_id(struct ph_fs *fs, uint64_t id)
{
    struct ph_node *node = *id_bucket(fs, id);

    while (node && node->id != id)
        node = node->next_by_id;
    return node;
}

static struct ph_node *find_key(struct ph_fs *fs, uint64_t dev, uint64_t ino)
{
    struct ph_node *node = *key_bucket(fs, dev, ino);

    while (node && (node->dev != dev || node->ino != ino))
        node = node->next_by_key;
    return node;
}

static void link_id(struct ph_fs *fs, struct ph_node *node)
{
    struct ph_node **bucket = id_bucket(fs, node->id);

    node->next_by_id = *bucket;
    *bucket = node;
    node->known = true;
}

static void link_key(struct ph_fs *fs, struct ph_node *node)
{
    struct ph_node **bucket = key_bucket(fs, node->dev, node->ino);

    node->next_by_key = *bucket;
    *bucket = node;
    node->keyed = true;
}

static void unlink_id(struct ph_fs *fs, struct ph_node *node)
{
    struct ph_node **at = id_bucket(fs, node->id);

    while (*at != node)
        at = &(*at)->next_by_id;
    *at = node->next_by_id;
    node->known = false;
}

static void unlink_key(struct ph_fs *fs, struct ph_node *node)
{
    struct ph_node **at = key_bucket(fs, node->dev, node->ino);

    if (!node->keyed)
        return;
    while (*at != node)
        at = &(*at)->next_by_key;
    *at = node->next_by_key;
    node->keyed = false;
}

/* Twice as many buckets; without memory for them the chains grow longer instead. */
static void grow_nodes(struct ph_fs *fs)
{
    uint64_t old_buckets = fs->buckets;
    struct ph_node **old_by_id = fs->by_id, **old_by_key = fs->by_key;
    struct ph_node **by_id = calloc(old_buckets * 2, sizeof(struct ph_node *));
    struct ph_node **by_key = calloc(old_buckets * 2, sizeof(struct ph_node *));

    if (!by_id || !by_key) {
        free(by_id);
        free(by_key);
        return;
    }
    fs->by_id = by_id;
    fs->by_key = by_key;
    fs->buckets = old_buckets * 2;
    for (uint64_t i = 0; i < old_buckets; i++) {
        struct ph_node *next;

        for (struct ph_node *node = old_by_id[i]; node; node = next) {
            next = node->next_by_id;
            link_id(fs, node);
        }
        for (struct ph_node *node = old_by_key[i]; node; node = next) {
            next = node->next_by_key;
            link_key(fs, node);
        }
    }
    free(old_by_id);
    free(old_by_key);
}

static bool enter_use(struct ph_fs *fs, struct ph_node *node, int fd)
{
    if (fs->in_use_count == fs->in_use_room) {
        uint32_t room = fs->in_use_room * 2;
        struct ph_node **in_use = realloc(fs->in_use, room * sizeof(struct ph_node *));

        if (!in_use) {
            errno = ENOMEM;
            return false;
        }
        fs->in_use = in_use;
        fs->in_use_room = room;
    }
    node->fd = fd;
    node->place = fs->in_use_count++;
    fs->in_use[node->place] = node;
    return true;
}

static void leave_use(struct ph_fs *fs, struct ph_node *node)
{
    struct ph_node *last = fs->in_use[--fs->in_use_count];

    fs->in_use[node->place] = last;
    last->place = node->place;
}

/* Forgotten, and nobody uses it: what is left of it is to be cleared away. */
static struct ph_node *if_done(struct ph_fs *fs, struct ph_node *node)
{
    if (node->known || node->pins || node->opens)
        return NULL;
    if (node->fd >= 0)
        leave_use(fs, node);
    return node;
}

static struct anchor *find_anchor(struct ph_fs *fs, uint64_t dev)
{
    struct anchor *anchor = atomic_load(&fs->anchors);

    while (anchor && anchor->dev != dev)
        anchor = anchor->next;
    return anchor;
}

static int open_again(const struct ph_fs *fs, int fd, int flags)
{
    char room[12], *name = &room[sizeof(room) - 1];

    *name = '\0';
    do
        *--name = (char)('0' + fd % 10);
    while (fd /= 10);
    return openat(fs->proc_fd, name, flags | O_CLOEXEC);
}

static bool remember_anchor(struct ph_fs *fs, int fd, uint64_t dev)
{
    struct anchor *anchor;
    struct stat status;

    /* Opening a FIFO, a device or a socket would do something. */
    if (fstat(fd, &status) || (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)))
        return false;
    anchor = malloc(sizeof(*anchor));
    if (!anchor)
        return false;
    anchor->dev = dev;
    anchor->fd = open_again(fs, fd, O_RDONLY | O_NONBLOCK);
    if (anchor->fd < 0) {
        free(anchor);
        return false;
    }
    /* Two threads may add one each: the second is of no use, and does no harm. */
    anchor->next = atomic_load(&fs->anchors);
    while (!atomic_compare_exchange_weak(&fs->anchors, &anchor->next, anchor))
        continue;
    return true;
}

static struct file_handle *take_handle(struct ph_fs *fs, int fd, uint64_t dev)
{
    struct file_handle *handle;
    int mount_id;

    if (!find_anchor(fs, dev) && !remember_anchor(fs, fd, dev))
        return NULL;
    handle = malloc(sizeof(*handle) + HANDLE_BYTES);
    if (!handle)
        return NULL;
    handle->handle_bytes = HANDLE_BYTES;
    if (name_to_handle_at(fd, "", handle, &mount_id, AT_EMPTY_PATH)) {
        free(handle);
        return NULL;
    }
    return handle;
}

static bool same_handle(const struct file_handle *a, const struct file_handle *b)
{
    return a && b && a->handle_type == b->handle_type && a->handle_bytes == b->handle_bytes &&
           !memcmp(a->f_handle, b->f_handle, a->handle_bytes);
}

static int claim(const struct ph_fs *fs, int fd)
{
    if (fd < fs->descriptor_limit)
        return fd;
    close(fd);
    errno = EMFILE;
    return -1;
}

static int reopen(struct ph_fs *fs, uint64_t dev, struct file_handle *handle)
{
    struct anchor *anchor = find_anchor(fs, dev);
    int fd;

    if (!anchor || !handle) {
        errno = ESTALE;
        return -1;
    }
    fd = open_by_handle_at(anchor->fd, handle, O_PATH | O_CLOEXEC);
    return fd < 0 ? -1 : claim(fs, fd);
}

/* Let a node that was idle lately rest; the lock is held, and given up meanwhile. */
static void sweep_one(struct ph_fs *fs)
{
    struct rubbish rubbish = {.fd = -1};
    struct ph_node *node = fs->in_use[fs->hand++ % fs->in_use_count];
    struct stat status;
    bool rests, crowded;

    if (node->recently || node->pins || node->opens) {
        node->recently = false;
        return;
    }
    crowded = fs->in_use_count > fs->most_in_use + fs->most_in_use / 2;
    node->pins++;
    pthread_mutex_unlock(&fs->lock);
    /* Nothing leads back to a file without a name; see nodes.py. */
    rests = !fstat(node->fd, &status) && (status.st_nlink || crowded);
    if (rests && !node->handle) {
        struct file_handle *handle = take_handle(fs, node->fd, node->dev);

        pthread_mutex_lock(&fs->lock);
        if (node->handle)
            free(handle);
        else
            node->handle = handle;
        rests = node->handle;
    } else {
        pthread_mutex_lock(&fs->lock);
    }
    node->pins--;
    if (rests && node->known && !node->pins && !node->opens && !node->recently) {
        leave_use(fs, node);
        rubbish.fd = node->fd;
        node->fd = -1;
    } else {
        node->recently = true; /* not again at once */
        rubbish.node = if_done(fs, node);
    }
    pthread_mutex_unlock(&fs->lock);
    clear_away(&rubbish);
    pthread_mutex_lock(&fs->lock);
}

static void sweep(struct ph_fs *fs)
{
    for (int i = 0; fs->rests && i < SWEEP_STEPS && fs->in_use_count > fs->most_in_use; i++)
        sweep_one(fs);
}

static void free_all(struct ph_fs *fs)
{
    struct anchor *next_anchor;

    for (uint64_t i = 0; fs->handles && i < fs->handle_buckets; i++) {
        struct ph_handle *next;

        for (struct ph_handle *handle = fs->handles[i]; handle; handle = next) {
            struct rubbish rubbish = {.handle = handle, .fd = -1};

            next = handle->next;
            /* A forgotten node that was open is in no other table. */
            if (!--handle->node->opens && !handle->node->known)
                rubbish.node = handle->node;
            clear_away(&rubbish);
        }
    }
    for (uint64_t i = 0; fs->by_id && i < fs->buckets; i++) {
        struct ph_node *next;

        for (struct ph_node *node = fs->by_id[i]; node; node = next) {
            struct rubbish rubbish = {.node = node, .fd = -1};

            next = node->next_by_id;
            clear_away(&rubbish);
        }
    }
    for (struct anchor *anchor = fs->anchors; anchor; anchor = next_anchor) {
        next_anchor = anchor->next;
        close(anchor->fd);
        free(anchor);
    }
    if (fs->proc_fd >= 0)
        close(fs->proc_fd);
    free(fs->handles);
    free(fs->by_id);
    free(fs->by_key);
    free(fs->in_use);
    pthread_mutex_destroy(&fs->lock);
    free(fs);
}

static struct ph_node *new_node(uint64_t id, const struct stat *status,
                                const struct ph_rules *rules)
{
    struct ph_node *node = calloc(1, sizeof(*node));

    if (!node)
        return NULL;
    node->id = id;
    node->dev = status->st_dev;
    node->ino = status->st_ino;
    node->kind = status->st_mode & S_IFMT;
    node->rules = rules;
    node->fd = -1;
    node->recently = true;
    return node;
}

struct ph_fs *ph_fs_new(const struct ph_fs_setup *setup)
{
    struct ph_fs *fs = calloc(1, sizeof(*fs));
    struct file_handle *handle;
    struct stat status;
    int again;

    if (!fs || pthread_mutex_init(&fs->lock, NULL)) {
        close(setup->root_fd);
        free(fs);
        return NULL;
    }
    fs->rules = setup->rules;
    fs->references = 1;
    fs->buckets = fs->handle_buckets = fs->in_use_room = FIRST_BUCKETS;
    fs->by_id = calloc(fs->buckets, sizeof(struct ph_node *));
    fs->by_key = calloc(fs->buckets, sizeof(struct ph_node *));
    fs->in_use = calloc(fs->in_use_room, sizeof(struct ph_node *));
    fs->handles = calloc(fs->handle_buckets, sizeof(struct ph_handle *));
    fs->next_id = setup->root_id + 1;
    fs->next_handle = 1;
    fs->handle_limit = setup->handles;
    fs->most_in_use = (uint32_t)setup->descriptors;
    fs->descriptor_limit = setup->descriptor_limit;
    fs->may_switch = setup->may_switch;
    fs->proc_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (!fs->by_id || !fs->by_key || !fs->in_use || !fs->handles || fs->proc_fd < 0 ||
        fstat(setup->root_fd, &status) ||
        !(fs->root = new_node(setup->root_id, &status, &fs->rules))) {
        close(setup->root_fd);
        free_all(fs);
        return NULL;
    }
    fs->root->fd = setup->root_fd;
    fs->root->opens = 1; /* it never rests, and stays when it is forgotten */
    link_id(fs, fs->root);
    link_key(fs, fs->root);
    handle = take_handle(fs, fs->root->fd, fs->root->dev);
    again = handle ? reopen(fs, fs->root->dev, handle) : -1;
    fs->rests = again >= 0;
    if (fs->rests)
        close(again);
    free(handle);
    fs->limit = fs->rests || setup->nodes < setup->descriptors ? setup->nodes : setup->descriptors;
    return fs;
}

void ph_fs_retain(struct ph_fs *fs)
{
    atomic_fetch_add(&fs->references, 1);
}

void ph_fs_release(struct ph_fs *fs)
{
    if (atomic_fetch_sub(&fs->references, 1) == 1)
        free_all(fs);
}

uint64_t ph_fs_node_count(struct ph_fs *fs)
{
    return atomic_load_explicit(&fs->count, memory_order_relaxed);
}

uint64_t ph_fs_node_limit(const struct ph_fs *fs)
{
    return fs->limit;
}

uint64_t ph_fs_handle_count(struct ph_fs *fs)
{
    return atomic_load_explicit(&fs->handle_count, memory_order_relaxed);
}

const struct ph_rules *ph_fs_rules(const struct ph_fs *fs)
{
    return &fs->rules;
}

uint64_t ph_fs_root_id(const struct ph_fs *fs)
{
    return fs->root->id;
}

bool ph_fs_may_switch(const struct ph_fs *fs)
{
    return fs->may_switch;
}

int ph_fs_claim(const struct ph_fs *fs, int fd)
{
    return fd < 0 ? fd : claim(fs, fd);
}

int ph_fs_open_again(const struct ph_fs *fs, int fd, int flags)
{
    return ph_fs_claim(fs, open_again(fs, fd, flags));
}

bool ph_node_has_room(struct ph_fs *fs)
{
    return ph_fs_node_count(fs) < fs->limit;
}

bool ph_handle_has_room(struct ph_fs *fs)
{
    return ph_fs_handle_count(fs) < fs->handle_limit;
}

uint64_t ph_node_id(const struct ph_node *node)
{
    return node->id;
}

int ph_node_fd(const struct ph_node *node)
{
    return node->fd;
}

uint32_t ph_node_kind(const struct ph_node *node)
{
    return node->kind;
}

const struct ph_rules *ph_node_rules(const struct ph_node *node)
{
    return node->rules;
}

void ph_node_unpin(struct ph_fs *fs, struct ph_node *node)
{
    struct rubbish rubbish = {.fd = -1};

    pthread_mutex_lock(&fs->lock);
    node->pins--;
    rubbish.node = if_done(fs, node);
    pthread_mutex_unlock(&fs->lock);
    clear_away(&rubbish);
}

/* Give a pinned idle node its descriptor back. */
static bool wake(struct ph_fs *fs, struct ph_node *node)
{
    int fd = reopen(fs, node->dev, node->handle);
    bool awake;

    if (fd < 0)
        return false;
    pthread_mutex_lock(&fs->lock);
    awake = node->fd >= 0;
    if (!awake && enter_use(fs, node, fd)) {
        awake = true;
        fd = -1;
        sweep(fs);
    }
    pthread_mutex_unlock(&fs->lock);
    if (fd >= 0)
        close(fd);
    return awake;
}

struct ph_node *ph_node_pin(struct ph_fs *fs, uint64_t id)
{
    struct ph_node *node;
    bool idle = false;

    pthread_mutex_lock(&fs->lock);
    node = find_id(fs, id);
    if (node) {
        node->pins++;
        node->recently = true;
        idle = node->fd < 0;
    }
    pthread_mutex_unlock(&fs->lock);
    if (!node) {
        errno = ESTALE;
        return NULL;
    }
    if (idle && !wake(fs, node)) {
        int error = errno;

        ph_node_unpin(fs, node);
        errno = error;
        return NULL;
    }
    return node;
}

bool ph_node_knows_sibling(struct ph_fs *fs, const struct ph_node *node, uint64_t ino)
{
    bool known;

    pthread_mutex_lock(&fs->lock);
    known = find_key(fs, node->dev, ino);
    pthread_mutex_unlock(&fs->lock);
    return known;
}

/* The node of a file whose status was just read by its name; NULL when that does not tell. */
struct ph_node *ph_node_hold_known(struct ph_fs *fs, const struct stat *status)
{
    struct ph_node *node;

    pthread_mutex_lock(&fs->lock);
    node = find_key(fs, status->st_dev, status->st_ino);
    /* The number of a file whose descriptor is open is not used anew. */
    if (node && node->fd >= 0) {
        node->lookups++;
        node->pins++;
        node->recently = true;
    } else {
        node = NULL;
    }
    pthread_mutex_unlock(&fs->lock);
    return node;
}

/* Find a node by what was opened; an idle one only if it is the very same file. */
static struct ph_node *recognize(struct ph_fs *fs, int *fd, const struct stat *status)
{
    struct ph_node *node;

    while ((node = find_key(fs, status->st_dev, status->st_ino)) && node->fd < 0) {
        struct file_handle *handle;
        bool same;

        node->pins++;
        pthread_mutex_unlock(&fs->lock);
        handle = take_handle(fs, *fd, status->st_dev);
        pthread_mutex_lock(&fs->lock);
        same = same_handle(handle, node->handle);
        free(handle);
        node->pins--;
        if (!node->known) {
            struct rubbish rubbish = {.node = if_done(fs, node), .fd = -1};

            pthread_mutex_unlock(&fs->lock);
            clear_away(&rubbish);
            pthread_mutex_lock(&fs->lock);
        } else if (!same) {
            unlink_key(fs, node); /* the inode's number was used anew */
        } else if (node->fd < 0) {
            if (!enter_use(fs, node, *fd))
                return NULL;
            *fd = -1;
        }
    }
    return node;
}

struct ph_node *ph_node_hold(struct ph_fs *fs, int fd, const struct stat *status,
                             const struct ph_rules *rules)
{
    struct ph_node *node;
    int error = 0;

    pthread_mutex_lock(&fs->lock);
    node = recognize(fs, &fd, status);
    if (!node && fs->count >= fs->limit) {
        error = ENFILE;
    } else if (!node) {
        node = new_node(fs->next_id, status, rules);
        if (!node || !enter_use(fs, node, fd)) {
            free(node);
            node = NULL;
            error = ENOMEM;
        } else {
            fd = -1;
            fs->next_id++;
            if (fs->count++ >= fs->buckets)
                grow_nodes(fs);
            link_id(fs, node);
            link_key(fs, node);
        }
    }
    if (node) {
        node->lookups++;
        node->pins++;
        node->recently = true;
        sweep(fs);
    }
    pthread_mutex_unlock(&fs->lock);
    if (fd >= 0)
        close(fd);
    errno = error;
    return node;
}

void ph_node_forget(struct ph_fs *fs, uint64_t id, uint64_t count)
{
    struct rubbish rubbish = {.fd = -1};
    struct ph_node *node;

    pthread_mutex_lock(&fs->lock);
    node = find_id(fs, id);
    if (node && node != fs->root) {
        node->lookups -= count < node->lookups ? count : node->lookups;
        if (!node->lookups) {
            unlink_id(fs, node);
            unlink_key(fs, node);
            fs->count--;
            rubbish.node = if_done(fs, node);
        }
    }
    pthread_mutex_unlock(&fs->lock);
    clear_away(&rubbish);
}

static struct ph_handle **handle_bucket(struct ph_fs *fs, uint64_t number)
{
    return &fs->handles[number & (fs->handle_buckets - 1)];
}

static void grow_handles(struct ph_fs *fs)
{
    uint64_t old_buckets = fs->handle_buckets;
    struct ph_handle **old = fs->handles;
    struct ph_handle **handles = calloc(old_buckets * 2, sizeof(struct ph_handle *));

    if (!handles)
        return;
    fs->handles = handles;
    fs->handle_buckets = old_buckets * 2;
    for (uint64_t i = 0; i < old_buckets; i++) {
        struct ph_handle *next;

        for (struct ph_handle *handle = old[i]; handle; handle = next) {
            struct ph_handle **bucket = handle_bucket(fs, handle->number);

            next = handle->next;
            handle->next = *bucket;
            *bucket = handle;
        }
    }
    free(old);
}

uint64_t ph_handle_add(struct ph_fs *fs, struct ph_node *node, int fd, enum ph_kind kind)
{
    struct ph_handle *handle = calloc(1, sizeof(*handle)), **bucket;
    uint64_t number;

    if (!handle || pthread_mutex_init(&handle->lock, NULL)) {
        free(handle);
        close(fd);
        errno = ENOMEM;
        return 0;
    }
    handle->fd = fd;
    handle->position = PH_NOWHERE;
    handle->kind = kind;
    handle->node = node;
    pthread_mutex_lock(&fs->lock);
    if (fs->handle_count >= fs->handle_limit) {
        struct rubbish rubbish = {.handle = handle, .fd = -1};

        pthread_mutex_unlock(&fs->lock);
        clear_away(&rubbish);
        errno = ENFILE;
        return 0;
    }
    node->opens++;
    handle->known = true;
    number = handle->number = fs->next_handle++;
    if (fs->handle_count++ >= fs->handle_buckets)
        grow_handles(fs);
    bucket = handle_bucket(fs, handle->number);
    handle->next = *bucket;
    *bucket = handle;
    pthread_mutex_unlock(&fs->lock);
    return number; /* a guest that guessed it may have closed the handle by now */
}

struct ph_handle *ph_handle_pin(struct ph_fs *fs, uint64_t number, enum ph_kind kind)
{
    struct ph_handle *handle;

    pthread_mutex_lock(&fs->lock);
    handle = *handle_bucket(fs, number);
    while (handle && handle->number != number)
        handle = handle->next;
    if (handle && handle->kind == kind)
        handle->pins++;
    else
        handle = NULL;
    pthread_mutex_unlock(&fs->lock);
    if (!handle)
        errno = EBADF;
    return handle;
}

static void drop_handle(struct ph_fs *fs, struct ph_handle *handle, struct rubbish *rubbish)
{
    if (handle->known || handle->pins)
        return;
    handle->node->opens--;
    rubbish->handle = handle;
    rubbish->node = if_done(fs, handle->node);
}

void ph_handle_unpin(struct ph_fs *fs, struct ph_handle *handle)
{
    struct rubbish rubbish = {.fd = -1};

    pthread_mutex_lock(&fs->lock);
    handle->pins--;
    drop_handle(fs, handle, &rubbish);
    pthread_mutex_unlock(&fs->lock);
    clear_away(&rubbish);
}

static bool remove_handle(struct ph_fs *fs, uint64_t number, enum ph_kind kind, bool locked_too)
{
    struct rubbish rubbish = {.fd = -1};
    struct ph_handle **at, *handle;

    pthread_mutex_lock(&fs->lock);
    at = handle_bucket(fs, number);
    while (*at && (*at)->number != number)
        at = &(*at)->next;
    handle = *at;
    if (handle && handle->kind == kind && (locked_too || !ph_handle_is_locked(handle))) {
        *at = handle->next;
        handle->known = false;
        fs->handle_count--;
        drop_handle(fs, handle, &rubbish);
    } else {
        handle = NULL;
    }
    pthread_mutex_unlock(&fs->lock);
    clear_away(&rubbish);
    return handle;
}

bool ph_handle_remove(struct ph_fs *fs, uint64_t number, enum ph_kind kind)
{
    return remove_handle(fs, number, kind, true);
}

bool ph_handle_remove_unlocked(struct ph_fs *fs, uint64_t number, enum ph_kind kind)
{
    return remove_handle(fs, number, kind, false);
}

int ph_handle_fd(const struct ph_handle *handle)
{
    return handle->fd;
}

struct ph_node *ph_handle_node(const struct ph_handle *handle)
{
    return handle->node;
}

int64_t ph_handle_lock(struct ph_handle *handle)
{
    pthread_mutex_lock(&handle->lock);
    return handle->position;
}

void ph_handle_unlock_at(struct ph_handle *handle, int64_t position)
{
    handle->position = position;
    pthread_mutex_unlock(&handle->lock);
}

void ph_handle_unlock(struct ph_handle *handle)
{
    ph_handle_unlock_at(handle, PH_NOWHERE);
}

void ph_handle_mark_locked(struct ph_handle *handle)
{
    atomic_store(&handle->node->locked, true);
}

bool ph_handle_is_locked(const struct ph_handle *handle)
{
    return atomic_load(&handle->node->locked);
}

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
    struct file_handle *reopen_with; /* made when the node first becomes idle */
    struct ph_node *next_by_id;
    struct ph_node *next_by_key;
    uint32_t place; /* in mount->in_use */
    uint32_t pins;
    uint32_t opens;
    uint32_t kind;
    int fd;     /* -1: idle */
    bool known; /* found by its id */
    bool keyed; /* found by its inode */
    bool recently;
    atomic_bool posix_locked;
};

struct ph_open_file {
    uint64_t handle;
    struct ph_node *node;
    struct ph_open_file *next;
    pthread_mutex_t position_mutex;
    int64_t position; /* of the descriptor, of a directory; guarded by position_mutex */
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

struct ph_mount {
    struct ph_rules rules;
    pthread_mutex_t mutex;
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
    struct ph_open_file **open_files;
    uint64_t open_file_buckets;
    atomic_ullong open_file_count;
    uint64_t open_file_limit;
    uint64_t next_handle;
    struct anchor *_Atomic anchors;
    int descriptor_limit;
    int proc_fd;
    bool may_switch;
    bool rests; /* whether idle nodes can be found again */
};

/* Descriptors are closed and memory is freed when the mutex is not held. */
struct rubbish {
    struct ph_node *node;
    struct ph_open_file *opened;
    int fd;
};

static void clear_away(const struct rubbish *rubbish)
{
    if (rubbish->fd >= 0)
        close(rubbish->fd);
    if (rubbish->opened) {
        close(rubbish->opened->fd);
        pthread_mutex_destroy(&rubbish->opened->position_mutex);
        free(rubbish->opened);
    }
    if (rubbish->node) {
        if (rubbish->node->fd >= 0)
            close(rubbish->node->fd);
        free(rubbish->node->reopen_with);
        free(rubbish->node);
    }
}

static uint64_t key_hash(uint64_t dev, uint64_t ino)
{
    uint64_t mixed = (ino + dev * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;

    return mixed ^ mixed >> 32;
}

static struct ph_node **id_bucket(struct ph_mount *mount, uint64_t id)
{
    return &mount->by_id[id & (mount->buckets - 1)];
}

static struct ph_node **key_bucket(struct ph_mount *mount, uint64_t dev, uint64_t ino)
{
    return &mount->by_key[key_hash(dev, ino) & (mount->buckets - 1)];
}

static struct ph_node *find_id(struct ph_mount *mount, uint64_t id)
{
    struct ph_node *node = *id_bucket(mount, id);

    while (node && node->id != id)
        node = node->next_by_id;
    return node;
}

static struct ph_node *find_key(struct ph_mount *mount, uint64_t dev, uint64_t ino)
{
    struct ph_node *node = *key_bucket(mount, dev, ino);

    while (node && (node->dev != dev || node->ino != ino))
        node = node->next_by_key;
    return node;
}

static void link_id(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node **bucket = id_bucket(mount, node->id);

    node->next_by_id = *bucket;
    *bucket = node;
    node->known = true;
}

static void link_key(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node **bucket = key_bucket(mount, node->dev, node->ino);

    node->next_by_key = *bucket;
    *bucket = node;
    node->keyed = true;
}

static void unlink_id(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node **at = id_bucket(mount, node->id);

    while (*at != node)
        at = &(*at)->next_by_id;
    *at = node->next_by_id;
    node->known = false;
}

static void unlink_key(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node **at = key_bucket(mount, node->dev, node->ino);

    if (!node->keyed)
        return;
    while (*at != node)
        at = &(*at)->next_by_key;
    *at = node->next_by_key;
    node->keyed = false;
}

/* Twice as many buckets; without memory for them the chains grow longer instead. */
static void grow_nodes(struct ph_mount *mount)
{
    uint64_t old_buckets = mount->buckets;
    struct ph_node **old_by_id = mount->by_id, **old_by_key = mount->by_key;
    struct ph_node **by_id = calloc(old_buckets * 2, sizeof(struct ph_node *));
    struct ph_node **by_key = calloc(old_buckets * 2, sizeof(struct ph_node *));

    if (!by_id || !by_key) {
        free(by_id);
        free(by_key);
        return;
    }
    mount->by_id = by_id;
    mount->by_key = by_key;
    mount->buckets = old_buckets * 2;
    for (uint64_t i = 0; i < old_buckets; i++) {
        struct ph_node *next;

        for (struct ph_node *node = old_by_id[i]; node; node = next) {
            next = node->next_by_id;
            link_id(mount, node);
        }
        for (struct ph_node *node = old_by_key[i]; node; node = next) {
            next = node->next_by_key;
            link_key(mount, node);
        }
    }
    free(old_by_id);
    free(old_by_key);
}

static bool enter_use(struct ph_mount *mount, struct ph_node *node, int fd)
{
    if (mount->in_use_count == mount->in_use_room) {
        uint32_t room = mount->in_use_room * 2;
        struct ph_node **in_use = realloc(mount->in_use, room * sizeof(struct ph_node *));

        if (!in_use) {
            errno = ENOMEM;
            return false;
        }
        mount->in_use = in_use;
        mount->in_use_room = room;
    }
    node->fd = fd;
    node->place = mount->in_use_count++;
    mount->in_use[node->place] = node;
    return true;
}

static void leave_use(struct ph_mount *mount, struct ph_node *node)
{
    struct ph_node *last = mount->in_use[--mount->in_use_count];

    mount->in_use[node->place] = last;
    last->place = node->place;
}

/* Forgotten, and nobody uses it: what is left of it is to be cleared away. */
static struct ph_node *if_done(struct ph_mount *mount, struct ph_node *node)
{
    if (node->known || node->pins || node->opens)
        return NULL;
    if (node->fd >= 0)
        leave_use(mount, node);
    return node;
}

static struct anchor *find_anchor(struct ph_mount *mount, uint64_t dev)
{
    struct anchor *anchor = atomic_load(&mount->anchors);

    while (anchor && anchor->dev != dev)
        anchor = anchor->next;
    return anchor;
}

static int open_again(const struct ph_mount *mount, int fd, int flags)
{
    char room[12], *name = &room[sizeof(room) - 1];

    *name = '\0';
    do
        *--name = (char)('0' + fd % 10);
    while (fd /= 10);
    return openat(mount->proc_fd, name, flags | O_CLOEXEC);
}

static bool remember_anchor(struct ph_mount *mount, int fd, uint64_t dev)
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
    anchor->fd = open_again(mount, fd, O_RDONLY | O_NONBLOCK);
    if (anchor->fd < 0) {
        free(anchor);
        return false;
    }
    /* Two threads may add one each: the second is of no use, and does no harm. */
    anchor->next = atomic_load(&mount->anchors);
    while (!atomic_compare_exchange_weak(&mount->anchors, &anchor->next, anchor))
        continue;
    return true;
}

/* What `reopen` opens the file again with; NULL: it could not be opened again. */
static struct file_handle *prepare_reopening(struct ph_mount *mount, int fd, uint64_t dev)
{
    struct file_handle *reopen_with;
    int mount_id;

    if (!find_anchor(mount, dev) && !remember_anchor(mount, fd, dev))
        return NULL;
    reopen_with = malloc(sizeof(*reopen_with) + HANDLE_BYTES);
    if (!reopen_with)
        return NULL;
    reopen_with->handle_bytes = HANDLE_BYTES;
    if (name_to_handle_at(fd, "", reopen_with, &mount_id, AT_EMPTY_PATH)) {
        free(reopen_with);
        return NULL;
    }
    return reopen_with;
}

static bool same_file(const struct file_handle *a, const struct file_handle *b)
{
    return a && b && a->handle_type == b->handle_type && a->handle_bytes == b->handle_bytes &&
           !memcmp(a->f_handle, b->f_handle, a->handle_bytes);
}

static int claim(const struct ph_mount *mount, int fd)
{
    if (fd < mount->descriptor_limit)
        return fd;
    close(fd);
    errno = EMFILE;
    return -1;
}

static int reopen(struct ph_mount *mount, uint64_t dev, struct file_handle *reopen_with)
{
    struct anchor *anchor = find_anchor(mount, dev);
    int fd;

    if (!anchor || !reopen_with) {
        errno = ESTALE;
        return -1;
    }
    fd = open_by_handle_at(anchor->fd, reopen_with, O_PATH | O_CLOEXEC);
    return fd < 0 ? -1 : claim(mount, fd);
}

/* Let a node that was idle lately rest; the mutex is held, and let go of meanwhile. */
static void sweep_one(struct ph_mount *mount)
{
    struct rubbish rubbish = {.fd = -1};
    struct ph_node *node = mount->in_use[mount->hand++ % mount->in_use_count];
    struct stat status;
    bool rests, crowded;

    if (node->recently || node->pins || node->opens) {
        node->recently = false;
        return;
    }
    crowded = mount->in_use_count > mount->most_in_use + mount->most_in_use / 2;
    node->pins++;
    pthread_mutex_unlock(&mount->mutex);
    /* Nothing leads back to a file without a name; see nodes.py. */
    rests = !fstat(node->fd, &status) && (status.st_nlink || crowded);
    if (rests && !node->reopen_with) {
        struct file_handle *reopen_with = prepare_reopening(mount, node->fd, node->dev);

        pthread_mutex_lock(&mount->mutex);
        if (node->reopen_with)
            free(reopen_with);
        else
            node->reopen_with = reopen_with;
        rests = node->reopen_with;
    } else {
        pthread_mutex_lock(&mount->mutex);
    }
    node->pins--;
    if (rests && node->known && !node->pins && !node->opens && !node->recently) {
        leave_use(mount, node);
        rubbish.fd = node->fd;
        node->fd = -1;
    } else {
        node->recently = true; /* not again at once */
        rubbish.node = if_done(mount, node);
    }
    pthread_mutex_unlock(&mount->mutex);
    clear_away(&rubbish);
    pthread_mutex_lock(&mount->mutex);
}

static void sweep(struct ph_mount *mount)
{
    for (int i = 0; mount->rests && i < SWEEP_STEPS && mount->in_use_count > mount->most_in_use;
         i++)
        sweep_one(mount);
}

static void free_all(struct ph_mount *mount)
{
    struct anchor *next_anchor;

    for (uint64_t i = 0; mount->open_files && i < mount->open_file_buckets; i++) {
        struct ph_open_file *next;

        for (struct ph_open_file *opened = mount->open_files[i]; opened; opened = next) {
            struct rubbish rubbish = {.opened = opened, .fd = -1};

            next = opened->next;
            /* A forgotten node that was open is in no other table. */
            if (!--opened->node->opens && !opened->node->known)
                rubbish.node = opened->node;
            clear_away(&rubbish);
        }
    }
    for (uint64_t i = 0; mount->by_id && i < mount->buckets; i++) {
        struct ph_node *next;

        for (struct ph_node *node = mount->by_id[i]; node; node = next) {
            struct rubbish rubbish = {.node = node, .fd = -1};

            next = node->next_by_id;
            clear_away(&rubbish);
        }
    }
    for (struct anchor *anchor = mount->anchors; anchor; anchor = next_anchor) {
        next_anchor = anchor->next;
        close(anchor->fd);
        free(anchor);
    }
    if (mount->proc_fd >= 0)
        close(mount->proc_fd);
    free(mount->open_files);
    free(mount->by_id);
    free(mount->by_key);
    free(mount->in_use);
    pthread_mutex_destroy(&mount->mutex);
    free(mount);
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

struct ph_mount *ph_mount_new(const struct ph_mount_setup *setup)
{
    struct ph_mount *mount = calloc(1, sizeof(*mount));
    struct file_handle *reopen_with;
    struct stat status;
    int again;

    if (!mount || pthread_mutex_init(&mount->mutex, NULL)) {
        close(setup->root_fd);
        free(mount);
        return NULL;
    }
    mount->rules = setup->rules;
    mount->references = 1;
    mount->buckets = mount->open_file_buckets = mount->in_use_room = FIRST_BUCKETS;
    mount->by_id = calloc(mount->buckets, sizeof(struct ph_node *));
    mount->by_key = calloc(mount->buckets, sizeof(struct ph_node *));
    mount->in_use = calloc(mount->in_use_room, sizeof(struct ph_node *));
    mount->open_files = calloc(mount->open_file_buckets, sizeof(struct ph_open_file *));
    mount->next_id = setup->root_id + 1;
    mount->next_handle = 1;
    mount->open_file_limit = setup->handles;
    mount->most_in_use = (uint32_t)setup->descriptors;
    mount->descriptor_limit = setup->descriptor_limit;
    mount->may_switch = setup->may_switch;
    mount->proc_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (!mount->by_id || !mount->by_key || !mount->in_use || !mount->open_files ||
        mount->proc_fd < 0 || fstat(setup->root_fd, &status) ||
        !(mount->root = new_node(setup->root_id, &status, &mount->rules))) {
        close(setup->root_fd);
        free_all(mount);
        return NULL;
    }
    mount->root->fd = setup->root_fd;
    mount->root->opens = 1; /* it never rests, and stays when it is forgotten */
    link_id(mount, mount->root);
    link_key(mount, mount->root);
    reopen_with = prepare_reopening(mount, mount->root->fd, mount->root->dev);
    again = reopen_with ? reopen(mount, mount->root->dev, reopen_with) : -1;
    mount->rests = again >= 0;
    if (mount->rests)
        close(again);
    free(reopen_with);
    mount->limit =
        mount->rests || setup->nodes < setup->descriptors ? setup->nodes : setup->descriptors;
    return mount;
}

void ph_mount_retain(struct ph_mount *mount)
{
    atomic_fetch_add(&mount->references, 1);
}

void ph_mount_release(struct ph_mount *mount)
{
    if (atomic_fetch_sub(&mount->references, 1) == 1)
        free_all(mount);
}

uint64_t ph_mount_node_count(struct ph_mount *mount)
{
    return atomic_load_explicit(&mount->count, memory_order_relaxed);
}

uint64_t ph_mount_node_limit(const struct ph_mount *mount)
{
    return mount->limit;
}

uint64_t ph_mount_open_file_count(struct ph_mount *mount)
{
    return atomic_load_explicit(&mount->open_file_count, memory_order_relaxed);
}

const struct ph_rules *ph_mount_rules(const struct ph_mount *mount)
{
    return &mount->rules;
}

uint64_t ph_mount_root_id(const struct ph_mount *mount)
{
    return mount->root->id;
}

bool ph_mount_may_switch(const struct ph_mount *mount)
{
    return mount->may_switch;
}

int ph_mount_claim(const struct ph_mount *mount, int fd)
{
    return fd < 0 ? fd : claim(mount, fd);
}

int ph_mount_open_again(const struct ph_mount *mount, int fd, int flags)
{
    return ph_mount_claim(mount, open_again(mount, fd, flags));
}

bool ph_node_has_room(struct ph_mount *mount)
{
    return ph_mount_node_count(mount) < mount->limit;
}

bool ph_open_file_has_room(struct ph_mount *mount)
{
    return ph_mount_open_file_count(mount) < mount->open_file_limit;
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

void ph_node_unpin(struct ph_mount *mount, struct ph_node *node)
{
    struct rubbish rubbish = {.fd = -1};

    pthread_mutex_lock(&mount->mutex);
    node->pins--;
    rubbish.node = if_done(mount, node);
    pthread_mutex_unlock(&mount->mutex);
    clear_away(&rubbish);
}

/* Give a pinned idle node its descriptor back. */
static bool wake(struct ph_mount *mount, struct ph_node *node)
{
    int fd = reopen(mount, node->dev, node->reopen_with);
    bool awake;

    if (fd < 0)
        return false;
    pthread_mutex_lock(&mount->mutex);
    awake = node->fd >= 0;
    if (!awake && enter_use(mount, node, fd)) {
        awake = true;
        fd = -1;
        sweep(mount);
    }
    pthread_mutex_unlock(&mount->mutex);
    if (fd >= 0)
        close(fd);
    return awake;
}

struct ph_node *ph_node_pin(struct ph_mount *mount, uint64_t id)
{
    struct ph_node *node;
    bool idle = false;

    pthread_mutex_lock(&mount->mutex);
    node = find_id(mount, id);
    if (node) {
        node->pins++;
        node->recently = true;
        idle = node->fd < 0;
    }
    pthread_mutex_unlock(&mount->mutex);
    if (!node) {
        errno = ESTALE;
        return NULL;
    }
    if (idle && !wake(mount, node)) {
        int error = errno;

        ph_node_unpin(mount, node);
        errno = error;
        return NULL;
    }
    return node;
}

bool ph_node_knows_sibling(struct ph_mount *mount, const struct ph_node *node, uint64_t ino)
{
    bool known;

    pthread_mutex_lock(&mount->mutex);
    known = find_key(mount, node->dev, ino);
    pthread_mutex_unlock(&mount->mutex);
    return known;
}

/* The node of a file whose status was just read by its name; NULL when that does not tell. */
struct ph_node *ph_node_hold_known(struct ph_mount *mount, const struct stat *status)
{
    struct ph_node *node;

    pthread_mutex_lock(&mount->mutex);
    node = find_key(mount, status->st_dev, status->st_ino);
    /* The number of a file whose descriptor is open is not used anew. */
    if (node && node->fd >= 0) {
        node->lookups++;
        node->pins++;
        node->recently = true;
    } else {
        node = NULL;
    }
    pthread_mutex_unlock(&mount->mutex);
    return node;
}

/* Find a node by what was opened; an idle one only if it is the very same file. */
static struct ph_node *recognize(struct ph_mount *mount, int *fd, const struct stat *status)
{
    struct ph_node *node;

    while ((node = find_key(mount, status->st_dev, status->st_ino)) && node->fd < 0) {
        struct file_handle *reopen_with;
        bool same;

        node->pins++;
        pthread_mutex_unlock(&mount->mutex);
        reopen_with = prepare_reopening(mount, *fd, status->st_dev);
        pthread_mutex_lock(&mount->mutex);
        same = same_file(reopen_with, node->reopen_with);
        free(reopen_with);
        node->pins--;
        if (!node->known) {
            struct rubbish rubbish = {.node = if_done(mount, node), .fd = -1};

            pthread_mutex_unlock(&mount->mutex);
            clear_away(&rubbish);
            pthread_mutex_lock(&mount->mutex);
        } else if (!same) {
            unlink_key(mount, node); /* the inode's number was used anew */
        } else if (node->fd < 0) {
            if (!enter_use(mount, node, *fd))
                return NULL;
            *fd = -1;
        }
    }
    return node;
}

struct ph_node *ph_node_hold(struct ph_mount *mount, int fd, const struct stat *status,
                             const struct ph_rules *rules)
{
    struct ph_node *node;
    int error = 0;

    pthread_mutex_lock(&mount->mutex);
    node = recognize(mount, &fd, status);
    if (!node && mount->count >= mount->limit) {
        error = ENFILE;
    } else if (!node) {
        node = new_node(mount->next_id, status, rules);
        if (!node || !enter_use(mount, node, fd)) {
            free(node);
            node = NULL;
            error = ENOMEM;
        } else {
            fd = -1;
            mount->next_id++;
            if (mount->count++ >= mount->buckets)
                grow_nodes(mount);
            link_id(mount, node);
            link_key(mount, node);
        }
    }
    if (node) {
        node->lookups++;
        node->pins++;
        node->recently = true;
        sweep(mount);
    }
    pthread_mutex_unlock(&mount->mutex);
    if (fd >= 0)
        close(fd);
    errno = error;
    return node;
}

void ph_node_forget(struct ph_mount *mount, uint64_t id, uint64_t count)
{
    struct rubbish rubbish = {.fd = -1};
    struct ph_node *node;

    pthread_mutex_lock(&mount->mutex);
    node = find_id(mount, id);
    if (node && node != mount->root) {
        node->lookups -= count < node->lookups ? count : node->lookups;
        if (!node->lookups) {
            unlink_id(mount, node);
            unlink_key(mount, node);
            mount->count--;
            rubbish.node = if_done(mount, node);
        }
    }
    pthread_mutex_unlock(&mount->mutex);
    clear_away(&rubbish);
}

static struct ph_open_file **open_file_bucket(struct ph_mount *mount, uint64_t number)
{
    return &mount->open_files[number & (mount->open_file_buckets - 1)];
}

static void grow_open_files(struct ph_mount *mount)
{
    uint64_t old_buckets = mount->open_file_buckets;
    struct ph_open_file **old = mount->open_files;
    struct ph_open_file **open_files = calloc(old_buckets * 2, sizeof(struct ph_open_file *));

    if (!open_files)
        return;
    mount->open_files = open_files;
    mount->open_file_buckets = old_buckets * 2;
    for (uint64_t i = 0; i < old_buckets; i++) {
        struct ph_open_file *next;

        for (struct ph_open_file *opened = old[i]; opened; opened = next) {
            struct ph_open_file **bucket = open_file_bucket(mount, opened->handle);

            next = opened->next;
            opened->next = *bucket;
            *bucket = opened;
        }
    }
    free(old);
}

uint64_t ph_open_file_add(struct ph_mount *mount, struct ph_node *node, int fd, enum ph_kind kind)
{
    struct ph_open_file *opened = calloc(1, sizeof(*opened)), **bucket;
    uint64_t handle;

    if (!opened || pthread_mutex_init(&opened->position_mutex, NULL)) {
        free(opened);
        close(fd);
        errno = ENOMEM;
        return 0;
    }
    opened->fd = fd;
    opened->position = PH_NOWHERE;
    opened->kind = kind;
    opened->node = node;
    pthread_mutex_lock(&mount->mutex);
    if (mount->open_file_count >= mount->open_file_limit) {
        struct rubbish rubbish = {.opened = opened, .fd = -1};

        pthread_mutex_unlock(&mount->mutex);
        clear_away(&rubbish);
        errno = ENFILE;
        return 0;
    }
    node->opens++;
    opened->known = true;
    handle = opened->handle = mount->next_handle++;
    if (mount->open_file_count++ >= mount->open_file_buckets)
        grow_open_files(mount);
    bucket = open_file_bucket(mount, opened->handle);
    opened->next = *bucket;
    *bucket = opened;
    pthread_mutex_unlock(&mount->mutex);
    return handle; /* a guest that guessed it may have closed the file by now */
}

struct ph_open_file *ph_open_file_pin(struct ph_mount *mount, uint64_t handle, enum ph_kind kind)
{
    struct ph_open_file *opened;

    pthread_mutex_lock(&mount->mutex);
    opened = *open_file_bucket(mount, handle);
    while (opened && opened->handle != handle)
        opened = opened->next;
    if (opened && opened->kind == kind)
        opened->pins++;
    else
        opened = NULL;
    pthread_mutex_unlock(&mount->mutex);
    if (!opened)
        errno = EBADF;
    return opened;
}

static void drop_open_file(struct ph_mount *mount, struct ph_open_file *opened,
                           struct rubbish *rubbish)
{
    if (opened->known || opened->pins)
        return;
    opened->node->opens--;
    rubbish->opened = opened;
    rubbish->node = if_done(mount, opened->node);
}

void ph_open_file_unpin(struct ph_mount *mount, struct ph_open_file *opened)
{
    struct rubbish rubbish = {.fd = -1};

    pthread_mutex_lock(&mount->mutex);
    opened->pins--;
    drop_open_file(mount, opened, &rubbish);
    pthread_mutex_unlock(&mount->mutex);
    clear_away(&rubbish);
}

static bool remove_open_file(struct ph_mount *mount, uint64_t handle, enum ph_kind kind,
                             bool posix_locked_too)
{
    struct rubbish rubbish = {.fd = -1};
    struct ph_open_file **at, *opened;

    pthread_mutex_lock(&mount->mutex);
    at = open_file_bucket(mount, handle);
    while (*at && (*at)->handle != handle)
        at = &(*at)->next;
    opened = *at;
    if (opened && opened->kind == kind &&
        (posix_locked_too || !ph_open_file_is_posix_locked(opened))) {
        *at = opened->next;
        opened->known = false;
        mount->open_file_count--;
        drop_open_file(mount, opened, &rubbish);
    } else {
        opened = NULL;
    }
    pthread_mutex_unlock(&mount->mutex);
    clear_away(&rubbish);
    return opened;
}

bool ph_open_file_remove(struct ph_mount *mount, uint64_t handle, enum ph_kind kind)
{
    return remove_open_file(mount, handle, kind, true);
}

bool ph_open_file_remove_unless_posix_locked(struct ph_mount *mount, uint64_t handle,
                                             enum ph_kind kind)
{
    return remove_open_file(mount, handle, kind, false);
}

int ph_open_file_fd(const struct ph_open_file *opened)
{
    return opened->fd;
}

struct ph_node *ph_open_file_node(const struct ph_open_file *opened)
{
    return opened->node;
}

int64_t ph_directory_hold(struct ph_open_file *opened)
{
    pthread_mutex_lock(&opened->position_mutex);
    return opened->position;
}

void ph_directory_let_go_at(struct ph_open_file *opened, int64_t position)
{
    opened->position = position;
    pthread_mutex_unlock(&opened->position_mutex);
}

void ph_directory_let_go(struct ph_open_file *opened)
{
    ph_directory_let_go_at(opened, PH_NOWHERE);
}

void ph_open_file_mark_posix_locked(struct ph_open_file *opened)
{
    atomic_store(&opened->node->posix_locked, true);
}

bool ph_open_file_is_posix_locked(const struct ph_open_file *opened)
{
    return atomic_load(&opened->node->posix_locked);
}

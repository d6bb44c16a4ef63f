/*
 * Fuzz target: the nodes and open files of a mount, native/nodes.c and open_files.c, which several
 * threads use at once.
 *
 * Every third byte of the input is one thread's: a call, or something that happens to the files.
 * The limits are low, so nodes are evicted and found again all the time; by their names only, if
 * the input is of odd length. Whatever a thread has pinned must go on being the file that it was.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../mount_private.h"
#include "../nodes.h"
#include "../open_files.h"
#include "share.h"

enum {
    THREADS = 3,
    SLOTS = 2,
    MAX_OPS = 256,
    MAX_OPEN_FILES = 4,
};

enum op {
    LOOK_UP,
    LOOK_UP_KNOWN,
    PIN,
    UNPIN,
    KNOWS,
    FORGET,
    OPEN,
    PIN_OPEN_FILE,
    UNPIN_OPEN_FILE,
    REMOVE,
    REPLACE,
    MARK_POSIX_LOCKED,
    LOOK_UP_BELOW,
    REMOVE_NAME,
    RENAME,
    OPS,
};

static const char *const NAMES[] = {"a", "b", "hard", "dir", "fifo", "up", "suid", "full"};
static const char *const BELOW[] = {"f0", "f1", "f2"};
static const char *const FILES[] = {"a", "b", "hard", "suid"};

/* One thread, and what it has pinned. */
struct actor {
    uint8_t ops[MAX_OPS];
    int op_count;
    struct ph_node *nodes[SLOTS];
    struct stat status[SLOTS];
    struct ph_open_file *opened;
};

static struct actor actors[THREADS];
static struct ph_mount *mount;
static struct ph_node *root;
static int shared_fd;
static pthread_barrier_t start, end;

static void check_same(int fd, const struct stat *status)
{
    struct stat now;

    HOLDS(!fstat(fd, &now));
    HOLDS(now.st_dev == status->st_dev && now.st_ino == status->st_ino);
    HOLDS((now.st_mode & S_IFMT) == (status->st_mode & S_IFMT));
}

static void unpin(struct actor *actor, unsigned slot)
{
    if (!actor->nodes[slot])
        return;
    check_same(ph_node_fd(actor->nodes[slot]), &actor->status[slot]);
    ph_node_unpin(mount, actor->nodes[slot]);
    actor->nodes[slot] = NULL;
}

static void keep(struct actor *actor, unsigned slot, struct ph_node *node,
                 const struct stat *status)
{
    unpin(actor, slot);
    if (!node)
        return;
    actor->nodes[slot] = node;
    if (status)
        actor->status[slot] = *status;
    else
        HOLDS(!fstat(ph_node_fd(node), &actor->status[slot]));
    check_same(ph_node_fd(node), &actor->status[slot]);
    HOLDS(ph_node_kind(node) == (actor->status[slot].st_mode & S_IFMT));
}

static void unpin_open_file(struct actor *actor)
{
    struct stat status;

    if (!actor->opened)
        return;
    HOLDS(!fstat(ph_open_file_fd(actor->opened), &status));
    check_same(ph_node_fd(ph_open_file_node(actor->opened)), &status);
    ph_open_file_unpin(mount, actor->opened);
    actor->opened = NULL;
}

static void look_up(struct actor *actor, unsigned slot, const char *name, int only_known)
{
    struct ph_status status;
    int fd;

    if (only_known) {
        if (!ph_status_at(shared_fd, name, &status))
            keep(actor, slot, ph_node_count_lookup_if_known(mount, root, name, &status),
                 &status.host);
        return;
    }
    fd = openat(shared_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) {
        HOLDS(!ph_status_of(fd, &status));
        keep(actor, slot, ph_node_count_lookup(mount, root, name, fd, &status), &status.host);
    }
}

static void look_up_below(struct actor *actor, unsigned slot, const char *name)
{
    struct ph_node *dir = actor->nodes[!slot];
    struct ph_status status;
    int fd;

    if (!dir || !S_ISDIR(ph_node_kind(dir)))
        return;
    fd = openat(ph_node_fd(dir), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) {
        HOLDS(!ph_status_of(fd, &status));
        keep(actor, slot, ph_node_count_lookup(mount, dir, name, fd, &status), &status.host);
    }
}

static void remove_name(const char *name)
{
    struct ph_node *node = ph_removal_begin(mount, root, name);

    ph_removal_end(mount, node, root, name, !unlinkat(shared_fd, name, 0));
}

static void rename_file(const char *old, const char *name)
{
    if (!renameat2(shared_fd, old, shared_fd, name, RENAME_EXCHANGE)) {
        ph_node_renamed(mount, root, name);
        ph_node_renamed(mount, root, old);
    }
}

static void open_node(struct ph_node *node)
{
    int is_dir = S_ISDIR(ph_node_kind(node)), fd;

    if (!is_dir && !S_ISREG(ph_node_kind(node)))
        return;
    fd = ph_mount_open_via_proc(mount, ph_node_fd(node), O_RDONLY);
    HOLDS(fd >= 0);
    if (!ph_open_file_add(mount, node, fd, is_dir ? PH_DIRECTORY : PH_FILE))
        HOLDS(errno == EMFILE);
}

static void replace_file(const char *name)
{
    int fd;

    unlinkat(shared_fd, name, 0);
    fd = openat(shared_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
    if (fd >= 0)
        close(fd);
}

static void act(struct actor *actor, enum op op, unsigned arg)
{
    unsigned slot = arg % SLOTS;

    switch (op) {
    case LOOK_UP:
    case LOOK_UP_KNOWN:
        look_up(actor, slot, NAMES[arg % 8], op == LOOK_UP_KNOWN);
        break;
    case PIN:
        keep(actor, slot, ph_node_pin(mount, arg), NULL);
        break;
    case UNPIN:
        unpin(actor, slot);
        break;
    case KNOWS:
        if (actor->nodes[slot])
            ph_node_knows_sibling(mount, actor->nodes[slot], actor->status[!slot].st_ino);
        break;
    case FORGET:
        ph_node_forget(mount, arg / 2, arg % 2 ? 1 : UINT64_MAX);
        break;
    case OPEN:
        if (actor->nodes[slot])
            open_node(actor->nodes[slot]);
        break;
    case PIN_OPEN_FILE:
        unpin_open_file(actor);
        actor->opened = ph_open_file_pin(mount, arg / 2, arg % 2 ? PH_FILE : PH_DIRECTORY);
        break;
    case UNPIN_OPEN_FILE:
        unpin_open_file(actor);
        break;
    case REMOVE:
        ph_open_file_remove(mount, arg / 2, arg % 2 ? PH_FILE : PH_DIRECTORY);
        break;
    case REPLACE:
        replace_file(NAMES[arg % 8]);
        break;
    case MARK_POSIX_LOCKED:
        if (actor->opened) {
            ph_directory_lock(actor->opened);
            ph_open_file_mark_posix_locked(actor->opened);
            ph_directory_unlock(actor->opened);
        }
        break;
    case LOOK_UP_BELOW:
        look_up_below(actor, slot, BELOW[arg / SLOTS % 3]);
        break;
    case REMOVE_NAME:
        remove_name(NAMES[arg % 8]);
        break;
    case RENAME:
        rename_file(FILES[arg % 4], FILES[(arg + 1) % 4]);
        break;
    case OPS:
        break;
    }
    HOLDS(ph_mount_node_count(mount) <= ph_mount_node_limit(mount));
    HOLDS(ph_mount_open_file_count(mount) <= MAX_OPEN_FILES);
}

static void run(struct actor *actor)
{
    for (int i = 0; i < actor->op_count; i++)
        act(actor, actor->ops[i] % OPS, actor->ops[i] / OPS);
    for (unsigned slot = 0; slot < SLOTS; slot++)
        unpin(actor, slot);
    unpin_open_file(actor);
}

static void *run_thread(void *actor)
{
    for (;;) {
        pthread_barrier_wait(&start);
        run(actor);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    share_mount();
    pthread_barrier_init(&start, NULL, THREADS);
    pthread_barrier_init(&end, NULL, THREADS);
    for (int i = 1; i < THREADS; i++) {
        pthread_t thread;

        HOLDS(!pthread_create(&thread, NULL, run_thread, &actors[i]));
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ph_rules rules = {.keep_dir = UINT32_MAX, .keep_file = UINT32_MAX};

    for (int i = 0; i < THREADS; i++)
        actors[i].op_count = 0;
    for (size_t i = 0; i < size && i < THREADS * MAX_OPS; i++) {
        struct actor *actor = &actors[i % THREADS];

        actor->ops[actor->op_count++] = data[i];
    }
    mount = share_open(&rules, 0);
    shared_fd = share_fd();
    root = ph_node_pin(mount, ph_mount_root_id(mount));
    if (size % 2)
        ph_volume_distrust_handles(root->volume);
    pthread_barrier_wait(&start);
    run(&actors[0]);
    pthread_barrier_wait(&end);
    close(shared_fd);
    ph_node_unpin(mount, root);
    ph_mount_release(mount);
    share_check_outside();
    share_check_descriptors();
    return 0;
}

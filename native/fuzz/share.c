#include "share.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fuzz.h"

enum {
    NODES = 6,
    DESCRIPTORS = 3,
    HANDLES = 4,
    PROBES = 16,
};
#define SECRET "must stay what it is"

static const char *const DIRS[] = {"dir", "full"};
static int top_fd, free_numbers[PROBES];

static void set_read_only(const char *path, int recursively, int on)
{
    struct mount_attr attr = {
        .attr_set = on ? MOUNT_ATTR_RDONLY : 0,
        .attr_clr = on ? 0 : MOUNT_ATTR_RDONLY,
    };

    HOLDS(!syscall(SYS_mount_setattr, AT_FDCWD, path, recursively ? AT_RECURSIVE : 0, &attr,
                   sizeof(attr)));
}

static void put(int dir, const char *name, const char *content, mode_t mode)
{
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    HOLDS(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content));
    HOLDS(!fchmod(fd, mode));
    close(fd);
}

/* The tmpfs is attached to nothing: no path leads to it. */
static int make_tmpfs(void)
{
    int config = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), fd;

    HOLDS(config >= 0);
    HOLDS(!syscall(SYS_fsconfig, config, FSCONFIG_SET_STRING, "size", "16m", 0));
    HOLDS(!syscall(SYS_fsconfig, config, FSCONFIG_SET_STRING, "nr_inodes", "512", 0));
    HOLDS(!syscall(SYS_fsconfig, config, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    fd = (int)syscall(SYS_fsmount, config, FSMOUNT_CLOEXEC, 0);
    HOLDS(fd >= 0);
    close(config);
    return fd;
}

void share_mount(void)
{
    char here[4096];

    if (unshare(CLONE_NEWNS)) {
        fprintf(stderr, "cannot fuzz: this target makes a mount namespace, run it as root\n");
        exit(77);
    }
    HOLDS(getcwd(here, sizeof(here)));
    HOLDS(!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    HOLDS(!mount(here, here, NULL, MS_BIND, NULL));
    set_read_only("/", 1, 1);
    HOLDS(!chdir(here)); /* into the mount that was just made */
    set_read_only(".", 0, 0);
    top_fd = make_tmpfs();
    umask(0);
    put(top_fd, "outside", SECRET, 0600);
    HOLDS(!mkdirat(top_fd, "share", 0755));
}

static void remove_files(int dir)
{
    int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct dirent *entry;
    DIR *listing;

    HOLDS(fd >= 0 && (listing = fdopendir(fd)));
    while ((entry = readdir(listing)))
        unlinkat(dir, entry->d_name, 0); /* directories stay */
    closedir(listing);
}

/* Find the lowest free numbers, which the kernel gives next. */
static void probe(int numbers[PROBES])
{
    for (int i = 0; i < PROBES; i++)
        HOLDS((numbers[i] = fcntl(top_fd, F_DUPFD_CLOEXEC, 0)) >= 0);
    for (int i = 0; i < PROBES; i++)
        close(numbers[i]);
}

void share_lay_out(void)
{
    int root;

    probe(free_numbers);
    root = openat(top_fd, "share", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    HOLDS(root >= 0);
    remove_files(root);
    for (size_t i = 0; i < sizeof(DIRS) / sizeof(DIRS[0]); i++) {
        int dir;

        mkdirat(root, DIRS[i], 0755);
        dir = openat(root, DIRS[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        HOLDS(dir >= 0);
        remove_files(dir);
        for (char name[] = "f0"; i == 1 && name[1] < '8'; name[1]++)
            put(dir, name, name, 0644);
        close(dir);
    }
    put(root, "a", "content of a", 0644);
    put(root, "b", "", 0600);
    put(root, "suid", "x", 06755);
    HOLDS(!linkat(root, "a", root, "hard", 0));
    HOLDS(!symlinkat("../outside", root, "up"));
    HOLDS(!symlinkat("/", root, "abs"));
    HOLDS(!mkfifoat(root, "fifo", 0644));
    close(root);
}

int share_fd(void)
{
    int fd = openat(top_fd, "share", O_PATH | O_DIRECTORY | O_CLOEXEC);

    HOLDS(fd >= 0);
    return fd;
}

void share_check_outside(void)
{
    char content[64];
    int fd = openat(top_fd, "outside", O_RDONLY | O_CLOEXEC);
    struct stat status;

    HOLDS(fd >= 0 && read(fd, content, sizeof(content)) == (ssize_t)strlen(SECRET));
    HOLDS(!memcmp(content, SECRET, strlen(SECRET)));
    HOLDS(!fstat(fd, &status) && status.st_nlink == 1 && status.st_mode == (S_IFREG | 0600));
    close(fd);
    HOLDS(!fstat(top_fd, &status) && status.st_nlink == 3);
}

void share_check_descriptors(void)
{
    int now[PROBES];

    probe(now);
    HOLDS(!memcmp(now, free_numbers, sizeof(now)));
}

struct ph_mount *share_open_at(uint64_t root_id, const struct ph_rules *rules, int may_switch)
{
    struct ph_mount_setup setup = {
        .rules = *rules,
        .root_id = root_id,
        .nodes = NODES,
        .all_nodes = UINT32_MAX,
        .descriptors = DESCRIPTORS,
        .handles = HANDLES,
        .all_handles = UINT32_MAX,
        .descriptor_limit = 1024,
        .may_switch = (uint32_t)may_switch,
        .alone = 1,
    };
    struct ph_mount *mount;

    setup.root_fd = share_fd();
    mount = ph_mount_new(&setup);
    HOLDS(mount && ph_mount_node_limit(mount) == NODES);
    return mount;
}

struct ph_mount *share_open(const struct ph_rules *rules, int may_switch)
{
    share_lay_out();
    return share_open_at(FUSE_ROOT_ID, rules, may_switch);
}

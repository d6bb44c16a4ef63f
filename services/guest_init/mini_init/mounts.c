/*
 * Mounts and unmounts.
 */
#include <errno.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "files.h"
#include "log.h"
#include "mounts.h"
#include "porthole/guest/v1/guest_control.pb.h"
#include "waiting.h"

#define LISTED_LIMIT 512u

struct first_mount {
    const char *type, *target, *options;
    unsigned long flags;
};

void mounts_make_first(void)
{
    static const struct first_mount mounts[] = {
        {"devtmpfs", "/dev", "mode=755", MS_NOSUID},
        {"proc", "/proc", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
        {"sysfs", "/sys", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
        {"devpts", "/dev/pts", "mode=620,ptmxmode=666", MS_NOSUID | MS_NOEXEC},
        {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV},
        {"tmpfs", "/run", "mode=755", MS_NOSUID | MS_NODEV},
        {"tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV},
    };

    for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
        const struct first_mount *first = &mounts[i];

        (void)path_make(first->target, 0755);
        /* EBUSY: the kernel has mounted devtmpfs by itself. */
        if (mount(first->type, first->target, first->type, first->flags, first->options) &&
            errno != EBUSY)
            say("%s is not mounted: %s", first->target, strerror(errno));
    }
    /* Children of a shared mount cannot be moved. */
    (void)mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

/* Whether a mount may fail like this because its device is not there yet. */
static bool is_early(int error)
{
    return error == EINVAL || error == ENODEV || error == ENOENT || error == ENXIO ||
           error == ENOTBLK;
}

static bool is_absolute(const char *path)
{
    return path && path[0] == '/';
}

static struct outcome make_directory(const char *path)
{
    int error = is_absolute(path) ? path_make(path, 0755) : EINVAL;

    return error ? outcome_of(error, "directory %s: %s", path ? path : "", strerror(error))
                 : (struct outcome){0};
}

struct outcome mount_job(const void *request)
{
    const MountRequest *wanted = request;
    const char *source = wanted->source ? wanted->source : "";
    const char *type = wanted->fs_type ? wanted->fs_type : "";
    struct waiting waiting;
    struct outcome outcome;

    for (pb_size_t i = 0; i < wanted->directories_count; i++) {
        outcome = make_directory(wanted->directories[i]);
        if (outcome.error)
            return outcome;
    }
    outcome = make_directory(wanted->target);
    waiting_begin(&waiting, wanted->wait_ms);
    while (!outcome.error && mount(source, wanted->target, type, wanted->read_only ? MS_RDONLY : 0,
                                   wanted->options)) {
        int error = errno;

        if (!is_early(error) || !waiting_goes_on(&waiting))
            outcome = outcome_of(error, "mount of %s \"%s\" at %s: %s", type, source,
                                 wanted->target, strerror(error));
    }
    return outcome;
}

struct outcome unmount_job(const void *request)
{
    const UnmountRequest *wanted = request;
    const char *target = wanted->target ? wanted->target : "";

    if (umount2(target, wanted->lazy ? MNT_DETACH : 0))
        return outcome_of(errno, "unmount of %s: %s", target, strerror(errno));
    return (struct outcome){0};
}

static const char *const moved[] = {"/dev", "/proc", "/sys"};
#define MOVED_COUNT (sizeof(moved) / sizeof(moved[0]))

/* Move mounts below another root, or back; returns how many were moved, with errno. */
static size_t move(const char *from, const char *to, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char source[PATH_BYTES], target[PATH_BYTES];

        if (!path_join(source, from, moved[i], "") || !path_join(target, to, moved[i], "")) {
            errno = ENAMETOOLONG;
            return i;
        }
        errno = path_make(target, 0755);
        if (errno || mount(source, target, NULL, MS_MOVE, NULL))
            return i;
    }
    return count;
}

struct outcome enter_root(const char *path)
{
    char names[4096];
    ssize_t names_length = file_read("/etc/resolv.conf", names, sizeof(names));
    size_t count;
    int error;

    if (!is_absolute(path))
        return outcome_of(EINVAL, "the root %s is no absolute path", path ? path : "");
    count = move("", path, MOVED_COUNT);
    if (count == MOVED_COUNT && !chdir(path)) {
        if (!mount(".", "/", NULL, MS_MOVE, NULL)) {
            if (chroot(".") || chdir("/"))
                say("the root was moved and cannot be entered: %s", strerror(errno));
            error =
                names_length > 0 ? file_write("/etc/resolv.conf", names, (size_t)names_length) : 0;
            if (error)
                say("/etc/resolv.conf of the new root is not written: %s", strerror(error));
            return (struct outcome){0};
        }
    }
    error = errno;
    (void)chdir("/");
    (void)move(path, "", count);
    return outcome_of(error, "root %s: %s", path, strerror(error));
}

void mounts_end_all(void)
{
    static char *targets[LISTED_LIMIT];
    FILE *list = setmntent("/proc/self/mounts", "re");
    size_t count = 0;

    if (!list)
        return;
    for (struct mntent *entry = getmntent(list); entry && count < LISTED_LIMIT;
         entry = getmntent(list))
        targets[count++] = strdup(entry->mnt_dir);
    endmntent(list);
    while (count--) {
        if (!targets[count] || !umount2(targets[count], 0) || !strcmp(targets[count], "/proc"))
            continue;
        (void)mount("", targets[count], NULL, MS_REMOUNT | MS_RDONLY, NULL);
    }
}

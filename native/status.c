#include "status.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

/* From Linux 6.8 on mounts have ids that are never used again. */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000U
#endif

enum { WANTED = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID | STATX_MNT_ID_UNIQUE };

static struct timespec moment(const struct statx_timestamp *time)
{
    return (struct timespec){.tv_sec = time->tv_sec, .tv_nsec = time->tv_nsec};
}

static uint64_t born_ns(const struct statx *found)
{
    if (!(found->stx_mask & STATX_BTIME))
        return 0;
    return (uint64_t)found->stx_btime.tv_sec * 1000000000u + found->stx_btime.tv_nsec;
}

static int read_status(int fd, const char *name, int flags, struct ph_status *status)
{
    struct statx found = {0};

    if (statx(fd, name, flags, WANTED, &found))
        return -1;
    *status = (struct ph_status){
        .host.st_dev = makedev(found.stx_dev_major, found.stx_dev_minor),
        .host.st_ino = found.stx_ino,
        .host.st_mode = found.stx_mode,
        .host.st_nlink = found.stx_nlink,
        .host.st_uid = found.stx_uid,
        .host.st_gid = found.stx_gid,
        .host.st_rdev = makedev(found.stx_rdev_major, found.stx_rdev_minor),
        .host.st_size = (off_t)found.stx_size,
        .host.st_blksize = found.stx_blksize,
        .host.st_blocks = (blkcnt_t)found.stx_blocks,
        .host.st_atim = moment(&found.stx_atime),
        .host.st_mtim = moment(&found.stx_mtime),
        .host.st_ctim = moment(&found.stx_ctime),
        .mount = found.stx_mnt_id,
        .born_ns = born_ns(&found),
    };
    return 0;
}

int ph_status_of(int fd, struct ph_status *status)
{
    return read_status(fd, "", AT_EMPTY_PATH, status);
}

int ph_status_at(int dir_fd, const char *name, struct ph_status *status)
{
    return read_status(dir_fd, name, AT_SYMLINK_NOFOLLOW, status);
}

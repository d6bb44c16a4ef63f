#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "buffers.h"
#include "operations.h"

#define OPEN_FLAGS (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME | O_LARGEFILE)

int ph_host_flags(const struct ph_rules *rules, uint32_t flags)
{
    flags &= OPEN_FLAGS;
    if (rules->writeback && (flags & O_ACCMODE) == O_WRONLY)
        flags ^= O_WRONLY ^ O_RDWR;
    return (int)flags;
}

/* Whether the contents of a file are changed by Python, which clears set-id bits and capabilities.
 *
 * readable_fd: of the file; -1 where there is only one that reads no attributes. */
static bool clears_first(const struct ph_rules *rules, int fd, int readable_fd, bool kills)
{
    struct stat status;

    if (rules->kept_capability[0] &&
        (readable_fd < 0 || fgetxattr(readable_fd, rules->kept_capability, NULL, 0) >= 0))
        return true;
    if (!kills && !rules->no_set_ids)
        return false;
    /* Where there are no set-id bits there is nothing to clear. */
    return (kills && rules->keeps_modes) || fstat(fd, &status) ||
           status.st_mode & (S_ISUID | S_ISGID);
}

/* The host refuses O_NOATIME to who does not own the file; it is opened without it then. */
static int open_via_proc(struct ph_mount *mount, int node_fd, int flags)
{
    int fd = ph_mount_open_via_proc(mount, node_fd, flags);

    if (fd < 0 && flags & O_NOATIME)
        fd = ph_mount_open_via_proc(mount, node_fd, flags & ~O_NOATIME);
    return fd;
}

int64_t ph_do_open(struct ph_request *request)
{
    struct ph_node *node = ph_pin_native(request);
    struct fuse_open_out out = {0};
    struct fuse_open_in in;
    int fd = -1;

    if (!node)
        return PH_PYTHON;
    memcpy(&in, request->body, sizeof(in));
    out.open_flags = ph_node_rules(node)->open_flags;
    if (S_ISREG(ph_node_kind(node)) && !in.open_flags && ph_open_file_has_room(request->mount) &&
        !(ph_node_rules(node)->read_only && in.flags & (O_ACCMODE | O_TRUNC)) &&
        !(in.flags & O_TRUNC && clears_first(ph_node_rules(node), ph_node_fd(node), -1, false)))
        fd = open_via_proc(request->mount, ph_node_fd(node),
                           ph_host_flags(ph_node_rules(node), in.flags));
    if (fd >= 0)
        out.fh = ph_open_file_add(request->mount, node, fd, PH_FILE);
    ph_node_unpin(request->mount, node);
    return out.fh ? ph_reply(request, &out, sizeof(out)) : PH_PYTHON;
}

int64_t ph_close_file(struct ph_request *request, enum ph_kind kind)
{
    struct fuse_release_in in;

    memcpy(&in, request->body, sizeof(in));
    if (in.release_flags || !ph_open_file_remove_unless_posix_locked(request->mount, in.fh, kind))
        return PH_PYTHON;
    return 0;
}

int64_t ph_do_release(struct ph_request *request)
{
    return ph_close_file(request, PH_FILE);
}

int64_t ph_do_flush(struct ph_request *request)
{
    struct fuse_flush_in in;
    struct ph_open_file *opened;
    int64_t result = PH_PYTHON;
    int fd = -1;

    memcpy(&in, request->body, sizeof(in));
    opened = ph_open_file_pin(request->mount, in.fh, PH_FILE);
    if (!opened)
        return PH_PYTHON;
    if (!ph_open_file_is_posix_locked(opened))
        fd = fcntl(ph_open_file_fd(opened), F_DUPFD_CLOEXEC, 0);
    /* close(2) reports an error once only, so Python could not report it any more. */
    if (fd >= 0)
        result = close(fd) ? -errno : 0;
    ph_open_file_unpin(request->mount, opened);
    return result;
}

/* Like preadv2(2) and pwritev2(2). The calls for one buffer cost less, and so do raw system calls,
 * which are no cancellation points. */
static ssize_t read_at(int fd, const struct iovec *to, int count, uint64_t offset)
{
    if (count == 1)
        return syscall(SYS_pread64, fd, to->iov_base, to->iov_len, offset);
    return syscall(SYS_preadv, fd, to, count, offset, 0);
}

static ssize_t write_at(int fd, const struct iovec *from, int count, uint64_t offset, int flags)
{
    if (count == 1 && !flags)
        return syscall(SYS_pwrite64, fd, from->iov_base, from->iov_len, offset);
    return syscall(SYS_pwritev2, fd, from, count, offset, 0, flags);
}

int64_t ph_do_read(struct ph_request *request)
{
    struct fuse_read_in in;
    struct ph_open_file *opened;
    ssize_t got = -1;

    memcpy(&in, request->body, sizeof(in));
    if (in.size > request->space_bytes || in.offset > INT64_MAX)
        return PH_PYTHON;
    opened = ph_open_file_pin(request->mount, in.fh, PH_FILE);
    if (!opened)
        return PH_PYTHON;
    if (in.size) {
        struct iovec *to = request->worker->data;
        int count = ph_buffers_cut(request->chain->writable, PH_OUT_HEADER, in.size, to);

        got = read_at(ph_open_file_fd(opened), to, count, in.offset);
    }
    ph_open_file_unpin(request->mount, opened);
    return got < 0 ? PH_PYTHON : got;
}

/* Whether a write is Python's: the share is read-only, or set-id bits have to be cleared. */
static bool is_pythons(const struct ph_open_file *opened, const struct fuse_write_in *in)
{
    const struct ph_rules *rules = ph_node_rules(ph_open_file_node(opened));
    int fd = ph_open_file_fd(opened);

    return rules->read_only ||
           clears_first(rules, fd, fd, in->write_flags & FUSE_WRITE_KILL_SUIDGID);
}

int64_t ph_do_write(struct ph_request *request)
{
    size_t fixed = sizeof(request->header) + sizeof(struct fuse_write_in);
    struct fuse_write_out out = {0};
    struct ph_open_file *opened;
    struct fuse_write_in in;
    ssize_t written = -1;

    memcpy(&in, request->body, sizeof(in));
    if (in.size != request->chain->readable_bytes - fixed || !in.size || in.offset > INT64_MAX)
        return PH_PYTHON;
    opened = ph_open_file_pin(request->mount, in.fh, PH_FILE);
    if (!opened)
        return PH_PYTHON;
    if (!is_pythons(opened, &in)) {
        struct iovec *from = request->worker->data;
        int count = ph_buffers_cut(request->chain->readable, fixed, in.size, from);
        bool appends = in.flags & O_APPEND && !(in.write_flags & FUSE_WRITE_CACHE);

        written =
            write_at(ph_open_file_fd(opened), from, count, in.offset, appends ? RWF_APPEND : 0);
    }
    ph_open_file_unpin(request->mount, opened);
    if (written < 0)
        return PH_PYTHON;
    out.size = (uint32_t)written;
    return ph_reply(request, &out, sizeof(out));
}

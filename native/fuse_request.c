#include "fuse_request.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "credentials.h"

enum {
    NAME_ROOM = NAME_MAX + 1,
    BODY_ROOM = 4096, /* what is copied out of guest memory; a BATCH_FORGET of 255 nodes */
    LISTING_BYTES = 1 << 20,
    DENTS_BYTES = 32768,
    DENT_LEAST = 24, /* struct linux_dirent64 with a name of one to four bytes */
};
#define OUT_HEADER sizeof(struct fuse_out_header)
#define OPEN_FLAGS (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME | O_LARGEFILE)

/* struct fuse_entry_out and struct fuse_open_out, as CREATE answers. */
struct created {
    struct fuse_entry_out entry;
    struct fuse_open_out open;
};

struct request {
    struct ph_worker *worker;
    struct ph_mount *mount;
    const struct ph_chain *chain;
    struct fuse_in_header header;
    uint64_t space_bytes; /* room for the reply's data */
    uint32_t body_bytes;
    uint8_t body[BODY_ROOM];
};

/* Each returns the length of the data that it placed, or PH_PYTHON. */
typedef int64_t operation(struct request *request);

bool ph_worker_init(struct ph_worker *worker)
{
    worker->listing = NULL;
    worker->data = malloc(IOV_MAX * sizeof(struct iovec));
    return worker->data;
}

void ph_worker_free(struct ph_worker *worker)
{
    free(worker->listing);
    free(worker->data);
}

static void gather(const struct iovec *from, uint8_t *to, size_t offset, size_t length)
{
    for (; length; from++) {
        size_t part = from->iov_len;

        if (offset >= part) {
            offset -= part;
            continue;
        }
        part = part - offset < length ? part - offset : length;
        memcpy(to, (const uint8_t *)from->iov_base + offset, part);
        to += part;
        length -= part;
        offset = 0;
    }
}

static void scatter(const struct iovec *to, size_t offset, const void *from, size_t length)
{
    const uint8_t *data = from;

    for (; length; to++) {
        size_t part = to->iov_len;

        if (offset >= part) {
            offset -= part;
            continue;
        }
        part = part - offset < length ? part - offset : length;
        memcpy((uint8_t *)to->iov_base + offset, data, part);
        data += part;
        length -= part;
        offset = 0;
    }
}

/* Where `length` bytes from `offset` on are, as buffers for a system call. */
static int slices(const struct iovec *whole, uint64_t offset, uint64_t length, struct iovec *out)
{
    int count = 0;

    for (; length; whole++) {
        uint64_t part = whole->iov_len;

        if (offset >= part) {
            offset -= part;
            continue;
        }
        part = part - offset < length ? part - offset : length;
        out[count++] = (struct iovec){(uint8_t *)whole->iov_base + offset, part};
        length -= part;
        offset = 0;
    }
    return count;
}

static int64_t reply(struct request *request, const void *data, size_t length)
{
    scatter(request->chain->writable, OUT_HEADER, data, length);
    return (int64_t)length;
}

/* The body as one name of a directory entry; NULL when it is none. */
static const char *name_after(const struct request *request, size_t fixed)
{
    const char *name = (const char *)request->body + fixed;
    size_t length = request->body_bytes - fixed;

    if (length < 2 || length > NAME_ROOM || name[length - 1])
        return NULL;
    if (strlen(name) != length - 1 || memchr(name, '/', length))
        return NULL;
    return !strcmp(name, ".") || !strcmp(name, "..") ? NULL : name;
}

/* One component that is neither "." nor "..", and no link followed: that never leads outside. */
static int open_beneath(const struct ph_mount *mount, int dir_fd, const char *name, int flags,
                        uint32_t mode)
{
    return ph_mount_claim(mount, openat(dir_fd, name, flags | O_NOFOLLOW | O_CLOEXEC, mode));
}

static void fill_attr(struct fuse_attr *attr, const struct stat *status,
                      const struct ph_rules *rules)
{
    *attr = (struct fuse_attr){
        .ino = status->st_ino ^ rules->ino_mask,
        .size = (uint64_t)status->st_size,
        .blocks = (uint64_t)status->st_blocks,
        .atime = (uint64_t)status->st_atim.tv_sec,
        .mtime = (uint64_t)status->st_mtim.tv_sec,
        .ctime = (uint64_t)status->st_ctim.tv_sec,
        .atimensec = (uint32_t)status->st_atim.tv_nsec,
        .mtimensec = (uint32_t)status->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)status->st_ctim.tv_nsec,
        .mode = status->st_mode & (S_ISDIR(status->st_mode) ? rules->keep_dir : rules->keep_file),
        .nlink = (uint32_t)status->st_nlink,
        .uid = rules->uid == PH_KEEP_ID ? status->st_uid : rules->uid,
        .gid = rules->gid == PH_KEEP_ID ? status->st_gid : rules->gid,
        .rdev = (uint32_t)status->st_rdev,
        .blksize = (uint32_t)status->st_blksize,
    };
}

static void fill_entry(struct fuse_entry_out *entry, const struct ph_node *node,
                       const struct stat *status)
{
    const struct ph_rules *rules = ph_node_rules(node);

    *entry = (struct fuse_entry_out){
        .nodeid = ph_node_id(node),
        .entry_valid = rules->valid_s,
        .attr_valid = rules->valid_s,
    };
    fill_attr(&entry->attr, status, rules);
}

/* As host_flags in files.py and writeback_flags in cache.py. */
static int host_flags(const struct ph_rules *rules, uint32_t flags)
{
    flags &= OPEN_FLAGS;
    if (rules->writeback && (flags & O_ACCMODE) == O_WRONLY)
        flags ^= O_WRONLY ^ O_RDWR;
    return (int)flags;
}

/* A node whose names and attributes are served here; pinned. */
static struct ph_node *pin_native(struct request *request, uint64_t id)
{
    struct ph_node *node = ph_node_pin(request->mount, id);

    if (node && ph_node_rules(node)->to_python) {
        ph_node_unpin(request->mount, node);
        return NULL;
    }
    return node;
}

/* As pin_native, of a directory in which something is to be changed. */
static struct ph_node *pin_writable_dir(struct request *request)
{
    struct ph_node *node = pin_native(request, request->header.nodeid);

    if (node && ph_node_rules(node)->read_only) {
        ph_node_unpin(request->mount, node);
        return NULL;
    }
    return node;
}

/* Look up a name that is probably not known yet, as `enter` does. */
static struct ph_node *enter_new(struct ph_mount *mount, int dir_fd, const char *name,
                                 const struct ph_rules *rules, struct stat *status)
{
    int fd = open_beneath(mount, dir_fd, name, O_PATH, 0);

    if (fd < 0)
        return NULL;
    if (fstat(fd, status)) {
        close(fd);
        return NULL;
    }
    return ph_node_hold(mount, fd, status, rules);
}

/* Look a name up and count the lookup; the node is pinned. NULL with errno. */
static struct ph_node *enter(struct ph_mount *mount, int dir_fd, const char *name,
                             const struct ph_rules *rules, struct stat *status)
{
    struct ph_node *node;

    /* Of a file that is known its status tells enough. */
    if (fstatat(dir_fd, name, status, AT_SYMLINK_NOFOLLOW))
        return NULL;
    node = ph_node_hold_known(mount, status);
    return node ? node : enter_new(mount, dir_fd, name, rules, status);
}

static int64_t do_lookup(struct request *request)
{
    const char *name = name_after(request, 0);
    struct ph_node *parent, *node;
    struct fuse_entry_out entry;
    struct stat status;

    if (!name || !(parent = pin_native(request, request->header.nodeid)))
        return PH_PYTHON;
    node = enter(request->mount, ph_node_fd(parent), name, ph_node_rules(parent), &status);
    ph_node_unpin(request->mount, parent);
    if (!node)
        return errno == ENOENT ? -ENOENT : PH_PYTHON;
    fill_entry(&entry, node, &status);
    ph_node_unpin(request->mount, node);
    return reply(request, &entry, sizeof(entry));
}

static int64_t do_forget(struct request *request)
{
    struct fuse_forget_in in;

    memcpy(&in, request->body, sizeof(in));
    ph_node_forget(request->mount, request->header.nodeid, in.nlookup);
    return 0;
}

static int64_t do_batch_forget(struct request *request)
{
    struct fuse_batch_forget_in in;
    struct fuse_forget_one one;

    memcpy(&in, request->body, sizeof(in));
    if (request->body_bytes != sizeof(in) + (uint64_t)in.count * sizeof(one))
        return PH_PYTHON;
    for (uint32_t i = 0; i < in.count; i++) {
        memcpy(&one, request->body + sizeof(in) + i * sizeof(one), sizeof(one));
        ph_node_forget(request->mount, one.nodeid, one.nlookup);
    }
    return 0;
}

static int64_t do_getattr(struct request *request)
{
    struct ph_node *node = pin_native(request, request->header.nodeid);
    struct fuse_attr_out out = {0};
    struct stat status;
    int failed;

    if (!node)
        return PH_PYTHON;
    failed = fstat(ph_node_fd(node), &status);
    if (!failed) {
        out.attr_valid = ph_node_rules(node)->valid_s;
        fill_attr(&out.attr, &status, ph_node_rules(node));
    }
    ph_node_unpin(request->mount, node);
    return failed ? PH_PYTHON : reply(request, &out, sizeof(out));
}

static int64_t do_open(struct request *request)
{
    struct ph_node *node = pin_native(request, request->header.nodeid);
    struct fuse_open_out out = {0};
    struct fuse_open_in in;
    int fd = -1;

    if (!node)
        return PH_PYTHON;
    memcpy(&in, request->body, sizeof(in));
    out.open_flags = ph_node_rules(node)->open_flags;
    if (S_ISREG(ph_node_kind(node)) && !in.open_flags && ph_open_file_has_room(request->mount) &&
        !(ph_node_rules(node)->read_only && in.flags & (O_ACCMODE | O_TRUNC)))
        fd = ph_mount_open_again(request->mount, ph_node_fd(node),
                                 host_flags(ph_node_rules(node), in.flags));
    if (fd >= 0)
        out.fh = ph_open_file_add(request->mount, node, fd, PH_FILE);
    ph_node_unpin(request->mount, node);
    return out.fh ? reply(request, &out, sizeof(out)) : PH_PYTHON;
}

static int64_t do_opendir(struct request *request)
{
    struct ph_node *node = pin_native(request, request->header.nodeid);
    struct fuse_open_out out = {0};
    int fd = -1;

    if (!node)
        return PH_PYTHON;
    out.open_flags = ph_node_rules(node)->opendir_flags;
    if (S_ISDIR(ph_node_kind(node)) && ph_open_file_has_room(request->mount))
        fd = ph_mount_open_again(request->mount, ph_node_fd(node), O_RDONLY | O_DIRECTORY);
    if (fd >= 0)
        out.fh = ph_open_file_add(request->mount, node, fd, PH_DIRECTORY);
    ph_node_unpin(request->mount, node);
    return out.fh ? reply(request, &out, sizeof(out)) : PH_PYTHON;
}

static int64_t close_file(struct request *request, enum ph_kind kind)
{
    struct fuse_release_in in;

    memcpy(&in, request->body, sizeof(in));
    if (in.release_flags || !ph_open_file_remove_unless_posix_locked(request->mount, in.fh, kind))
        return PH_PYTHON;
    return 0;
}

static int64_t do_release(struct request *request)
{
    return close_file(request, PH_FILE);
}

static int64_t do_releasedir(struct request *request)
{
    return close_file(request, PH_DIRECTORY);
}

static int64_t do_flush(struct request *request)
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
    /* What closing reports it reports once only. */
    if (fd >= 0)
        result = close(fd) ? -errno : 0;
    ph_open_file_unpin(request->mount, opened);
    return result;
}

/* As preadv2(2) and pwritev2(2): the plain calls cost less, and so do those that are no points of
 * cancellation. */
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

static int64_t do_read(struct request *request)
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
        int count = slices(request->chain->writable, OUT_HEADER, in.size, request->worker->data);

        got = read_at(ph_open_file_fd(opened), request->worker->data, count, in.offset);
    }
    ph_open_file_unpin(request->mount, opened);
    return got < 0 ? PH_PYTHON : got;
}

static int64_t do_write(struct request *request)
{
    size_t fixed = sizeof(request->header) + sizeof(struct fuse_write_in);
    struct fuse_write_out out = {0};
    const struct ph_rules *rules;
    struct fuse_write_in in;
    struct ph_open_file *opened;
    ssize_t written = -1;
    struct stat status;

    memcpy(&in, request->body, sizeof(in));
    if (in.size != request->chain->readable_bytes - fixed || !in.size || in.offset > INT64_MAX)
        return PH_PYTHON;
    opened = ph_open_file_pin(request->mount, in.fh, PH_FILE);
    if (!opened)
        return PH_PYTHON;
    rules = ph_node_rules(ph_open_file_node(opened));
    /* Set-id bits are to be cleared: only where there are any is that any work. */
    if (!rules->read_only && !(in.write_flags & FUSE_WRITE_KILL_SUIDGID &&
                               (rules->to_python || fstat(ph_open_file_fd(opened), &status) ||
                                status.st_mode & (S_ISUID | S_ISGID)))) {
        int count = slices(request->chain->readable, fixed, in.size, request->worker->data);
        bool appends = in.flags & O_APPEND && !(in.write_flags & FUSE_WRITE_CACHE);

        written = write_at(ph_open_file_fd(opened), request->worker->data, count, in.offset,
                           appends ? RWF_APPEND : 0);
    }
    ph_open_file_unpin(request->mount, opened);
    if (written < 0)
        return PH_PYTHON;
    out.size = (uint32_t)written;
    return reply(request, &out, sizeof(out));
}

/* A file was made and cannot be unmade: from here on a failure is an answer, not Python's. */
static int64_t answer_created(struct request *request, struct ph_node *parent, int made)
{
    struct created out = {0};
    struct ph_node *node = NULL;
    struct stat status;
    int path_fd = ph_mount_open_again(request->mount, made, O_PATH), error;

    if (path_fd >= 0 && !fstat(path_fd, &status))
        node = ph_node_hold(request->mount, path_fd, &status, ph_node_rules(parent));
    else if (path_fd >= 0)
        close(path_fd);
    error = errno;
    if (!node) {
        close(made);
        return -error;
    }
    fill_entry(&out.entry, node, &status);
    out.open.open_flags = ph_node_rules(node)->open_flags;
    out.open.fh = ph_open_file_add(request->mount, node, made, PH_FILE);
    error = errno;
    if (!out.open.fh) /* the guest does not learn of the node, so it never will forget it */
        ph_node_forget(request->mount, out.entry.nodeid, 1);
    ph_node_unpin(request->mount, node);
    return out.open.fh ? reply(request, &out, sizeof(out)) : -error;
}

static int64_t do_create(struct request *request)
{
    const char *name = name_after(request, sizeof(struct fuse_create_in));
    struct ph_credentials own;
    struct fuse_create_in in;
    struct ph_node *parent;
    bool switches = ph_mount_may_switch(request->mount);
    int64_t result = PH_PYTHON;
    int made = -1;

    memcpy(&in, request->body, sizeof(in));
    if (!name || in.open_flags || !ph_node_has_room(request->mount) ||
        !ph_open_file_has_room(request->mount))
        return PH_PYTHON;
    parent = pin_writable_dir(request);
    if (!parent)
        return PH_PYTHON;
    if (!switches || ph_credentials_assume(&own, request->header.uid, request->header.gid)) {
        made = open_beneath(request->mount, ph_node_fd(parent), name,
                            host_flags(ph_node_rules(parent), in.flags) | O_CREAT | O_EXCL,
                            in.mode & 07777);
        if (switches)
            ph_credentials_restore(&own);
    }
    if (made >= 0)
        result = answer_created(request, parent, made);
    ph_node_unpin(request->mount, parent);
    return result;
}

static int64_t do_unlink(struct request *request)
{
    const char *name = name_after(request, 0);
    struct ph_node *parent;
    int failed;

    if (!name || !(parent = pin_writable_dir(request)))
        return PH_PYTHON;
    failed = unlinkat(ph_node_fd(parent), name, 0);
    ph_node_unpin(request->mount, parent);
    return failed ? PH_PYTHON : 0;
}

/* Look an entry up for READDIRPLUS; one that cannot be must not hide the others. */
static void fill_listed(struct request *request, const struct ph_open_file *opened,
                        const struct dirent64 *found, struct fuse_entry_out *entry)
{
    const struct ph_node *directory = ph_open_file_node(opened);
    struct ph_node *node = NULL;
    struct stat status;

    if (strcmp(found->d_name, ".") && strcmp(found->d_name, ".."))
        node = (ph_node_knows_sibling(request->mount, directory, found->d_ino) ? enter : enter_new)(
            request->mount, ph_open_file_fd(opened), found->d_name, ph_node_rules(directory),
            &status);
    if (!node) {
        memset(entry, 0, sizeof(*entry));
        return;
    }
    fill_entry(entry, node, &status);
    ph_node_unpin(request->mount, node);
}

/*
 * Read entries of which all fit into `left` bytes of a listing: going back to one that does not
 * makes a file system find its place anew. Where that is less than one entry, read the next one if
 * it may fit. As getdents64(2); -1 with EINVAL: the next one cannot fit.
 */
static ssize_t read_fitting(int fd, void *dents, size_t left, size_t prefix)
{
    /* In a listing an entry takes up to 8 bytes more, and the prefix. */
    size_t wanted = left * DENT_LEAST / (DENT_LEAST + 8 + prefix);
    ssize_t got;

    if (wanted > DENTS_BYTES)
        wanted = DENTS_BYTES;
    do
        got = getdents64(fd, dents, wanted);
    while (got < 0 && errno == EINVAL && (wanted += DENT_LEAST) + prefix <= left &&
           wanted <= DENTS_BYTES);
    return got;
}

/*
 * List entries from the directory's position on; the length of the listing, or PH_PYTHON.
 * `position` becomes where that leaves the directory, or PH_NOWHERE.
 */
static int64_t list_from_here(struct request *request, struct ph_open_file *opened, size_t room,
                              bool plus, int64_t *position)
{
    uint64_t dents[DENTS_BYTES / sizeof(uint64_t)];
    struct ph_node *node = ph_open_file_node(opened);
    uint64_t ino_mask = ph_node_rules(node)->ino_mask;
    size_t prefix = plus ? sizeof(struct fuse_entry_out) : 0;
    int64_t reached = *position;
    size_t used = 0;

    *position = PH_NOWHERE;
    for (;;) {
        ssize_t got = read_fitting(ph_open_file_fd(opened), dents, room - used, prefix);

        if (got <= 0) {
            if (got < 0 && !(used && errno == EINVAL))
                return used ? (int64_t)used : PH_PYTHON;
            *position = reached;
            return (int64_t)used;
        }
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *found = (const void *)((const uint8_t *)dents + at);
            size_t name_bytes = strlen(found->d_name);
            size_t length = prefix + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_bytes);
            uint8_t *to = request->worker->listing + used;
            struct fuse_dirent *dirent = (struct fuse_dirent *)(to + prefix);
            struct stat status;

            if (used + length > room)
                return used ? (int64_t)used : PH_PYTHON;
            if (plus)
                fill_listed(request, opened, found, (void *)to);
            memset(dirent, 0, length - prefix);
            dirent->ino = found->d_ino ^ ino_mask;
            /* What lies above the share is not the guest's to know. */
            if (ph_node_id(node) == ph_mount_root_id(request->mount) &&
                !strcmp(found->d_name, "..") && !fstat(ph_node_fd(node), &status))
                dirent->ino = status.st_ino ^ ino_mask;
            dirent->off = (uint64_t)found->d_off;
            dirent->namelen = (uint32_t)name_bytes;
            dirent->type = found->d_type;
            memcpy(dirent->name, found->d_name, name_bytes);
            used += length;
            at += found->d_reclen;
            reached = found->d_off;
        }
    }
}

static int64_t list(struct request *request, bool plus)
{
    struct fuse_read_in in;
    struct ph_open_file *opened;
    int64_t length = PH_PYTHON, position;
    size_t room;

    memcpy(&in, request->body, sizeof(in));
    if (!request->worker->listing && !(request->worker->listing = malloc(LISTING_BYTES)))
        return PH_PYTHON;
    room = in.size < request->space_bytes ? in.size : request->space_bytes;
    room = room < LISTING_BYTES ? room : LISTING_BYTES;
    opened = ph_open_file_pin(request->mount, in.fh, PH_DIRECTORY);
    if (!opened)
        return PH_PYTHON;
    position = ph_directory_hold(opened);
    if (!ph_node_rules(ph_open_file_node(opened))->to_python && in.offset <= INT64_MAX &&
        ((int64_t)in.offset == position ||
         lseek(ph_open_file_fd(opened), (off_t)in.offset, SEEK_SET) >= 0)) {
        position = (int64_t)in.offset;
        length = list_from_here(request, opened, room, plus, &position);
    }
    ph_directory_let_go_at(opened, position);
    ph_open_file_unpin(request->mount, opened);
    return length < 0 ? PH_PYTHON : reply(request, request->worker->listing, (size_t)length);
}

static int64_t do_readdir(struct request *request)
{
    return list(request, false);
}

static int64_t do_readdirplus(struct request *request)
{
    return list(request, true);
}

/* As in table.py. */
static const struct {
    operation *run;
    uint16_t args;
    uint16_t reply_bytes;
    bool streamed;
    bool silent;
} OPERATIONS[] = {
    [FUSE_LOOKUP] = {.run = do_lookup, .reply_bytes = sizeof(struct fuse_entry_out)},
    [FUSE_FORGET] = {.run = do_forget, .args = sizeof(struct fuse_forget_in), .silent = true},
    [FUSE_BATCH_FORGET] = {.run = do_batch_forget,
                           .args = sizeof(struct fuse_batch_forget_in),
                           .silent = true},
    [FUSE_GETATTR] = {.run = do_getattr,
                      .args = sizeof(struct fuse_getattr_in),
                      .reply_bytes = sizeof(struct fuse_attr_out)},
    [FUSE_OPEN] = {.run = do_open,
                   .args = sizeof(struct fuse_open_in),
                   .reply_bytes = sizeof(struct fuse_open_out)},
    [FUSE_OPENDIR] = {.run = do_opendir,
                      .args = sizeof(struct fuse_open_in),
                      .reply_bytes = sizeof(struct fuse_open_out)},
    [FUSE_RELEASE] = {.run = do_release, .args = sizeof(struct fuse_release_in)},
    [FUSE_RELEASEDIR] = {.run = do_releasedir, .args = sizeof(struct fuse_release_in)},
    [FUSE_FLUSH] = {.run = do_flush, .args = sizeof(struct fuse_flush_in)},
    [FUSE_READ] = {.run = do_read, .args = sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {.run = do_write,
                    .args = sizeof(struct fuse_write_in),
                    .reply_bytes = sizeof(struct fuse_write_out),
                    .streamed = true},
    [FUSE_CREATE] = {.run = do_create,
                     .args = sizeof(struct fuse_create_in),
                     .reply_bytes = sizeof(struct created)},
    [FUSE_UNLINK] = {.run = do_unlink},
    [FUSE_READDIR] = {.run = do_readdir, .args = sizeof(struct fuse_read_in)},
    [FUSE_READDIRPLUS] = {.run = do_readdirplus, .args = sizeof(struct fuse_read_in)},
};

bool ph_fuse_read_header(const struct ph_chain *chain, struct fuse_in_header *header)
{
    if (chain->readable_bytes < sizeof(*header))
        return false;
    gather(chain->readable, (uint8_t *)header, 0, sizeof(*header));
    return true;
}

int64_t ph_fuse_serve(struct ph_worker *worker, struct ph_mount *mount,
                      const struct ph_chain *chain)
{
    struct fuse_in_header header;

    if (!ph_fuse_read_header(chain, &header))
        return PH_PYTHON;
    return ph_fuse_dispatch(worker, mount, chain, &header);
}

int64_t ph_fuse_dispatch(struct ph_worker *worker, struct ph_mount *mount,
                         const struct ph_chain *chain, const struct fuse_in_header *header)
{
    struct request request;
    struct fuse_out_header out;
    int64_t result;
    uint32_t opcode;
    bool silent;

    request.header = *header;
    opcode = request.header.opcode;
    if (request.header.len != chain->readable_bytes || request.header.total_extlen ||
        opcode >= sizeof(OPERATIONS) / sizeof(OPERATIONS[0]) || !OPERATIONS[opcode].run)
        return PH_PYTHON;
    request.body_bytes = request.header.len - (uint32_t)sizeof(request.header);
    if (request.body_bytes < OPERATIONS[opcode].args)
        return PH_PYTHON;
    if (OPERATIONS[opcode].streamed)
        request.body_bytes = OPERATIONS[opcode].args;
    silent = OPERATIONS[opcode].silent;
    if (request.body_bytes > sizeof(request.body) ||
        (!silent && chain->writable_bytes < OUT_HEADER + OPERATIONS[opcode].reply_bytes))
        return PH_PYTHON;
    gather(chain->readable, request.body, sizeof(request.header), request.body_bytes);
    request.worker = worker;
    request.mount = mount;
    request.chain = chain;
    request.space_bytes = silent ? 0 : chain->writable_bytes - OUT_HEADER;
    result = OPERATIONS[opcode].run(&request);
    if (result == PH_PYTHON || silent)
        return result;
    out.unique = request.header.unique;
    out.error = result < 0 ? (int32_t)result : 0;
    out.len = (uint32_t)(OUT_HEADER + (result < 0 ? 0 : (uint64_t)result));
    scatter(chain->writable, 0, &out, sizeof(out));
    return out.len;
}

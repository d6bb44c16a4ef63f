#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "credentials.h"
#include "operations.h"

enum { NAME_ROOM = NAME_MAX + 1 };

/* Returns what follows the arguments if it is one name of a directory entry, else NULL. */
static const char *name_after(const struct ph_request *request, size_t args)
{
    const char *name = (const char *)request->body + args;
    size_t length = request->body_bytes - args;

    if (length < 2 || length > NAME_ROOM || name[length - 1])
        return NULL;
    if (strlen(name) != length - 1 || memchr(name, '/', length))
        return NULL;
    return !strcmp(name, ".") || !strcmp(name, "..") ? NULL : name;
}

/* A name is one component, not "." or "..", and no link is followed: it never leads outside. */
static int open_beneath(struct ph_mount *mount, int dir_fd, const char *name, int flags,
                        uint32_t mode)
{
    return ph_mount_claim(mount, openat(dir_fd, name, flags | O_NOFOLLOW | O_CLOEXEC, mode));
}

struct ph_node *ph_enter(struct ph_mount *mount, const struct ph_node *parent, int dir_fd,
                         const char *name, struct ph_status *status)
{
    int fd = open_beneath(mount, dir_fd, name, O_PATH, 0);

    if (fd < 0)
        return NULL;
    if (ph_status_of(fd, status)) {
        close(fd);
        return NULL;
    }
    return ph_node_count_lookup(mount, parent, name, fd, status);
}

struct ph_node *ph_look_up(struct ph_mount *mount, const struct ph_node *parent, int dir_fd,
                           const char *name, struct ph_status *status)
{
    struct ph_node *node;

    /* If the file is known its status is enough, and nothing has to be opened. */
    if (ph_status_at(dir_fd, name, status))
        return NULL;
    node = ph_node_count_lookup_if_known(mount, parent, name, status);
    return node ? node : ph_enter(mount, parent, dir_fd, name, status);
}

int64_t ph_do_lookup(struct ph_request *request)
{
    const char *name = name_after(request, 0);
    struct ph_node *parent, *node;
    struct fuse_entry_out entry;
    struct ph_status status;

    if (!name || !(parent = ph_pin_native(request)))
        return PH_PYTHON;
    node = ph_look_up(request->mount, parent, ph_node_fd(parent), name, &status);
    ph_node_unpin(request->mount, parent);
    if (!node)
        return errno == ENOENT ? -ENOENT : PH_PYTHON;
    ph_fill_entry(&entry, node, &status.host);
    ph_node_unpin(request->mount, node);
    return ph_reply(request, &entry, sizeof(entry));
}

int64_t ph_do_forget(struct ph_request *request)
{
    struct fuse_forget_in in;

    memcpy(&in, request->body, sizeof(in));
    ph_node_forget(request->mount, request->header.nodeid, in.nlookup);
    return 0;
}

int64_t ph_do_batch_forget(struct ph_request *request)
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

/* Returns the request's node, pinned; NULL where changes in it are refused, or are Python's. */
static struct ph_node *pin_writable(struct ph_request *request)
{
    struct ph_node *node = ph_pin_native(request);

    if (node && ph_node_rules(node)->read_only) {
        ph_node_unpin(request->mount, node);
        return NULL;
    }
    return node;
}

/* The file was made, so a failure from here on is answered: Python would find the file there. */
static int64_t answer_created(struct ph_request *request, const struct ph_node *parent,
                              const char *name, int made)
{
    struct ph_created out = {0};
    struct ph_node *node = NULL;
    struct ph_status status;
    int path_fd = ph_mount_open_via_proc(request->mount, made, O_PATH), error;

    if (path_fd >= 0 && !ph_status_of(path_fd, &status))
        node = ph_node_count_lookup(request->mount, parent, name, path_fd, &status);
    else if (path_fd >= 0)
        close(path_fd);
    error = errno;
    if (!node) {
        close(made);
        return -error;
    }
    ph_fill_entry(&out.entry, node, &status.host);
    out.open.open_flags = ph_node_rules(node)->open_flags;
    out.open.fh = ph_open_file_add(request->mount, node, made, PH_FILE);
    error = errno;
    if (!out.open.fh) /* the guest does not learn of the node, and will not forget it */
        ph_node_forget(request->mount, out.entry.nodeid, 1);
    ph_node_unpin(request->mount, node);
    return out.open.fh ? ph_reply(request, &out, sizeof(out)) : -error;
}

/* Make the file under the umask that came with the request; see umask.py. */
static int make_masked(struct ph_request *request, const struct ph_node *parent, const char *name,
                       int flags, const struct fuse_create_in *in)
{
    uint32_t mode = in->mode & 07777, mask = in->umask & 0777;
    int made;

    if (!mask || !ph_node_rules(parent)->umask)
        return open_beneath(request->mount, ph_node_fd(parent), name, flags, mode);
    if (!request->worker->private_umask) {
        if (!ph_has_default_acl(parent))
            mode &= ~mask;
        return open_beneath(request->mount, ph_node_fd(parent), name, flags, mode);
    }
    umask(mask);
    made = open_beneath(request->mount, ph_node_fd(parent), name, flags, mode);
    umask(0);
    return made;
}

/* Make the file as the request's user, if that is allowed; returns the descriptor, or -1. */
static int make_file(struct ph_request *request, const struct ph_node *parent, const char *name,
                     const struct fuse_create_in *in)
{
    int flags = ph_host_flags(ph_node_rules(parent), in->flags) | O_CREAT | O_EXCL, made;
    bool switches = ph_mount_may_switch(request->mount);
    struct ph_credentials own;

    if (switches && !ph_credentials_assume(&own, request->header.uid, request->header.gid))
        return -1;
    made = make_masked(request, parent, name, flags, in);
    if (switches)
        ph_credentials_restore(&own);
    return made;
}

int64_t ph_do_create(struct ph_request *request)
{
    const char *name = name_after(request, sizeof(struct fuse_create_in));
    struct fuse_create_in in;
    struct ph_node *parent;
    int64_t result;
    int made;

    memcpy(&in, request->body, sizeof(in));
    if (!name || in.open_flags || !ph_node_has_room(request->mount) ||
        !ph_open_file_has_room(request->mount))
        return PH_PYTHON;
    parent = pin_writable(request);
    if (!parent)
        return PH_PYTHON;
    made = ph_node_rules(parent)->no_set_ids && in.mode & (S_ISUID | S_ISGID)
               ? -1
               : make_file(request, parent, name, &in);
    result = made >= 0 ? answer_created(request, parent, name, made) : PH_PYTHON;
    ph_node_unpin(request->mount, parent);
    return result;
}

int64_t ph_do_unlink(struct ph_request *request)
{
    const char *name = name_after(request, 0);
    struct ph_node *parent, *file;
    int failed;

    if (!name || !(parent = pin_writable(request)))
        return PH_PYTHON;
    file = ph_removal_begin(request->mount, parent, name);
    failed = unlinkat(ph_node_fd(parent), name, 0);
    ph_removal_end(request->mount, file, parent, name, !failed);
    ph_node_unpin(request->mount, parent);
    return failed ? PH_PYTHON : 0;
}

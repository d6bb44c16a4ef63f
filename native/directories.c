#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "operations.h"

enum {
    LISTING_BYTES = 1 << 20,
    DENTS_BYTES = 32768,
    DENT_LEAST = 24, /* struct linux_dirent64 with a name of one to four bytes */
};

/* A listing that is being made. */
struct listing {
    struct ph_request *request;
    struct ph_open_file *opened;
    struct ph_node *directory;
    uint8_t *bytes;
    size_t room;
    size_t used;
    size_t prefix; /* before each entry: READDIRPLUS has a fuse_entry_out there */
};

int64_t ph_do_opendir(struct ph_request *request)
{
    struct ph_node *node = ph_pin_native(request);
    struct fuse_open_out out = {0};
    int fd = -1;

    if (!node)
        return PH_PYTHON;
    out.open_flags = ph_node_rules(node)->opendir_flags;
    if (S_ISDIR(ph_node_kind(node)) && ph_open_file_has_room(request->mount))
        fd = ph_mount_open_via_proc(request->mount, ph_node_fd(node), O_RDONLY | O_DIRECTORY);
    if (fd >= 0)
        out.fh = ph_open_file_add(request->mount, node, fd, PH_DIRECTORY);
    ph_node_unpin(request->mount, node);
    return out.fh ? ph_reply(request, &out, sizeof(out)) : PH_PYTHON;
}

int64_t ph_do_releasedir(struct ph_request *request)
{
    return ph_close_file(request, PH_DIRECTORY);
}

static bool is_dots(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* Look up a listed entry for READDIRPLUS. If that fails it has no node, and the listing goes on. */
static void look_up_listed(struct listing *listing, const struct dirent64 *found,
                           struct fuse_entry_out *entry)
{
    struct ph_mount *mount = listing->request->mount;
    struct ph_node *node = NULL;
    struct ph_status status;

    if (!is_dots(found->d_name)) {
        bool known = ph_node_knows_sibling(mount, listing->directory, found->d_ino);

        node = (known ? ph_look_up : ph_enter)(
            mount, listing->directory, ph_open_file_fd(listing->opened), found->d_name, &status);
    }
    if (!node) {
        memset(entry, 0, sizeof(*entry));
        return;
    }
    ph_fill_entry(entry, node, &status.host);
    ph_node_unpin(mount, node);
}

/*
 * Read as many entries as certainly fit into the rest of the listing: a file system would have to
 * search for the place of an entry that did not fit. If the rest may be too short for one
 * entry, try to read one. Returns what getdents64(2) returns; -1 with EINVAL means that no further
 * entry fits.
 */
static ssize_t read_fitting(const struct listing *listing, void *dents)
{
    size_t left = listing->room - listing->used, prefix = listing->prefix;
    /* In a listing an entry takes up to 8 bytes more, and the prefix. */
    size_t wanted = left * DENT_LEAST / (DENT_LEAST + 8 + prefix);
    ssize_t got;

    if (wanted > DENTS_BYTES)
        wanted = DENTS_BYTES;
    do
        got = getdents64(ph_open_file_fd(listing->opened), dents, wanted);
    while (got < 0 && errno == EINVAL && (wanted += DENT_LEAST) + prefix <= left &&
           wanted <= DENTS_BYTES);
    return got;
}

/* The inode number that is shown of an entry. For ".." of the root it is the root's own: the guest
 * must not learn what lies above the share. */
static uint64_t shown_ino(const struct listing *listing, const struct dirent64 *found)
{
    const struct ph_node *directory = listing->directory;
    uint64_t ino = found->d_ino;
    struct stat status;

    if (ph_node_id(directory) == ph_mount_root_id(listing->request->mount) &&
        !strcmp(found->d_name, "..") && !fstat(ph_node_fd(directory), &status))
        ino = status.st_ino;
    return ino ^ ph_node_ino_mask(directory);
}

/* Add an entry; false when it does not fit. */
static bool add_entry(struct listing *listing, const struct dirent64 *found)
{
    size_t name_bytes = strlen(found->d_name);
    size_t length = listing->prefix + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_bytes);
    uint8_t *to = listing->bytes + listing->used;
    struct fuse_dirent *dirent = (struct fuse_dirent *)(to + listing->prefix);

    if (listing->used + length > listing->room)
        return false;
    if (listing->prefix)
        look_up_listed(listing, found, (void *)to);
    memset(dirent, 0, length - listing->prefix);
    dirent->ino = shown_ino(listing, found);
    dirent->off = (uint64_t)found->d_off;
    dirent->namelen = (uint32_t)name_bytes;
    dirent->type = found->d_type;
    memcpy(dirent->name, found->d_name, name_bytes);
    listing->used += length;
    return true;
}

/*
 * List entries from the directory's position on; returns the length of the listing, or PH_PYTHON.
 * Sets `position` to the directory's position afterwards, or to PH_NOWHERE.
 */
static int64_t list_from_here(struct listing *listing, int64_t *position)
{
    uint64_t dents[DENTS_BYTES / sizeof(uint64_t)];
    int64_t reached = *position;

    *position = PH_NOWHERE;
    for (;;) {
        ssize_t got = read_fitting(listing, dents);

        if (got <= 0) {
            if (got < 0 && !(listing->used && errno == EINVAL))
                return listing->used ? (int64_t)listing->used : PH_PYTHON;
            *position = reached;
            return (int64_t)listing->used;
        }
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *found = (const void *)((const uint8_t *)dents + at);

            if (!add_entry(listing, found))
                return listing->used ? (int64_t)listing->used : PH_PYTHON;
            at += found->d_reclen;
            reached = found->d_off;
        }
    }
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static int64_t list(struct ph_request *request, size_t prefix)
{
    struct ph_worker *worker = request->worker;
    int64_t length = PH_PYTHON, position;
    struct ph_open_file *opened;
    struct fuse_read_in in;

    memcpy(&in, request->body, sizeof(in));
    if (!worker->listing && !(worker->listing = malloc(LISTING_BYTES)))
        return PH_PYTHON;
    opened = ph_open_file_pin(request->mount, in.fh, PH_DIRECTORY);
    if (!opened)
        return PH_PYTHON;
    position = ph_directory_lock(opened);
    if (!ph_node_rules(ph_open_file_node(opened))->to_python && in.offset <= INT64_MAX &&
        ((int64_t)in.offset == position ||
         lseek(ph_open_file_fd(opened), (off_t)in.offset, SEEK_SET) >= 0)) {
        struct listing listing = {
            .request = request,
            .opened = opened,
            .directory = ph_open_file_node(opened),
            .bytes = worker->listing,
            .room = least(least(in.size, request->space_bytes), LISTING_BYTES),
            .prefix = prefix,
        };

        position = (int64_t)in.offset;
        length = list_from_here(&listing, &position);
    }
    ph_directory_unlock_at(opened, position);
    ph_open_file_unpin(request->mount, opened);
    return length < 0 ? PH_PYTHON : ph_reply(request, worker->listing, (size_t)length);
}

int64_t ph_do_readdir(struct ph_request *request)
{
    return list(request, 0);
}

int64_t ph_do_readdirplus(struct ph_request *request)
{
    return list(request, sizeof(struct fuse_entry_out));
}

#include <errno.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include <linux/xattr.h> /* after sys/xattr.h, which has names of it as well */

#include "operations.h"

enum { ACL_ROOM = 4096, PATH_ROOM = 32 }; /* Linux takes no larger ACL from a FUSE device */

static ssize_t read_acl(const struct ph_node *node, const char *name, void *to, size_t size)
{
    char path[PATH_ROOM]; /* getxattr(2) takes no O_PATH descriptor */

    snprintf(path, sizeof(path), "/proc/self/fd/%d", ph_node_fd(node));
    return getxattr(path, name, to, size);
}

bool ph_has_default_acl(const struct ph_node *directory)
{
    return read_acl(directory, XATTR_NAME_POSIX_ACL_DEFAULT, NULL, 0) > 0;
}

/* Returns the name that the request asks for if it is that of an ACL, else NULL. */
static const char *acl_name(const struct ph_request *request)
{
    static const char *const NAMES[] = {XATTR_NAME_POSIX_ACL_ACCESS, XATTR_NAME_POSIX_ACL_DEFAULT};
    const uint8_t *name = request->body + sizeof(struct fuse_getxattr_in);
    size_t length = request->body_bytes - sizeof(struct fuse_getxattr_in);

    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++)
        if (length == strlen(NAMES[i]) + 1 && !memcmp(name, NAMES[i], length))
            return NAMES[i];
    return NULL;
}

/* Whether it names a user or group that this user namespace has no id for. */
static bool names_unknown(const uint8_t *acl, size_t length)
{
    struct posix_acl_xattr_entry entry;

    for (size_t at = sizeof(struct posix_acl_xattr_header); at + sizeof(entry) <= length;
         at += sizeof(entry)) {
        memcpy(&entry, acl + at, sizeof(entry));
        if ((entry.e_tag == ACL_USER || entry.e_tag == ACL_GROUP) &&
            entry.e_id == (uint32_t)ACL_UNDEFINED_ID)
            return true;
    }
    return false;
}

int64_t ph_do_getxattr(struct ph_request *request)
{
    const char *name = acl_name(request);
    struct fuse_getxattr_in in;
    uint8_t acl[ACL_ROOM];
    struct ph_node *node;
    ssize_t got = -1;
    int error = 0;

    memcpy(&in, request->body, sizeof(in));
    if (!name || !in.size || !(node = ph_pin_native(request)))
        return PH_PYTHON;
    if (ph_node_rules(node)->acls) {
        got = read_acl(node, name, acl, in.size < sizeof(acl) ? in.size : sizeof(acl));
        error = errno;
    }
    ph_node_unpin(request->mount, node);
    /* Linux would refuse all access to a file whose ACL it cannot get. */
    if (got < 0 && (error == ENODATA || error == EOPNOTSUPP))
        return -ENODATA;
    if (got < 0 || (size_t)got > request->space_bytes || names_unknown(acl, (size_t)got))
        return PH_PYTHON;
    return ph_reply(request, acl, (size_t)got);
}

/*
 * The operations that are served natively, and what they share. They follow the rules of names.py,
 * files.py, directories.py and metadata.py.
 *
 * An operation returns the length of the data that it placed after the reply's header, a negative
 * errno, or PH_PYTHON. It checks everything that the guest says before it changes anything on the
 * host, because after a change the request cannot be left to Python.
 */
#ifndef PORTHOLE_OPERATIONS_H
#define PORTHOLE_OPERATIONS_H

#include <linux/fuse.h>
#include <stddef.h>
#include <sys/stat.h>

#include "nodes.h"
#include "open_files.h"
#include "request.h"

enum { PH_BODY_ROOM = 4096 }; /* of a body that is copied: a BATCH_FORGET of 255 nodes fits */

#define PH_OUT_HEADER sizeof(struct fuse_out_header)

struct ph_worker {
    uint8_t *listing; /* a directory's entries, on their way to the guest; made when needed */
    struct iovec *data;
    bool private_umask; /* the thread's umask is no other thread's */
};

struct ph_request {
    struct ph_worker *worker;
    struct ph_mount *mount;
    const struct ph_chain *chain;
    struct fuse_in_header header;
    uint64_t space_bytes; /* room for the reply's data */
    uint32_t body_bytes;
    uint8_t body[PH_BODY_ROOM];
};

/* The reply to CREATE. */
struct ph_created {
    struct fuse_entry_out entry;
    struct fuse_open_out open;
};

/* Place data after the reply's header; returns its length. */
int64_t ph_reply(const struct ph_request *request, const void *data, size_t length);
/* Returns the request's node, pinned; NULL if there is none, or if Python serves its attributes. */
struct ph_node *ph_pin_native(struct ph_request *request);

/* metadata.c */
int64_t ph_do_getattr(struct ph_request *request);
void ph_fill_entry(struct fuse_entry_out *entry, const struct ph_node *node,
                   const struct stat *status);

/* acls.c */
int64_t ph_do_getxattr(struct ph_request *request); /* of an ACL */
/* Whether what is made in a directory gets its permissions from an ACL, whatever the umask is. */
bool ph_has_default_acl(const struct ph_node *directory);

/* names.c */
int64_t ph_do_lookup(struct ph_request *request);
int64_t ph_do_forget(struct ph_request *request);
int64_t ph_do_batch_forget(struct ph_request *request);
int64_t ph_do_create(struct ph_request *request);
int64_t ph_do_unlink(struct ph_request *request);
/* Look up a name in a directory, by a descriptor of it, that the guest probably knows, and count
 * the lookup; returns the pinned node, or NULL with errno. Both are like Mount.look_up and
 * Mount.enter of mount.py. */
struct ph_node *ph_look_up(struct ph_mount *mount, const struct ph_node *parent, int dir_fd,
                           const char *name, struct ph_status *status);
/* The same, and quicker for a name that the guest probably does not know yet. */
struct ph_node *ph_enter(struct ph_mount *mount, const struct ph_node *parent, int dir_fd,
                         const char *name, struct ph_status *status);

/* files.c */
int64_t ph_do_open(struct ph_request *request);
int64_t ph_do_release(struct ph_request *request);
int64_t ph_do_flush(struct ph_request *request);
int64_t ph_do_read(struct ph_request *request);
int64_t ph_do_write(struct ph_request *request);
/* Returns the flags to open a file with on the host; see host_flags of files.py. */
int ph_host_flags(const struct ph_rules *rules, uint32_t flags);
int64_t ph_close_file(struct ph_request *request, enum ph_kind kind);

/* directories.c */
int64_t ph_do_opendir(struct ph_request *request);
int64_t ph_do_releasedir(struct ph_request *request);
int64_t ph_do_readdir(struct ph_request *request);
int64_t ph_do_readdirplus(struct ph_request *request);

#endif

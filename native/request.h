/*
 * One FUSE request: taken apart and answered in place, by the rules of operations/request.py and
 * operations/table.py.
 *
 * A request is answered here if it is well formed and its operation succeeds. Every other request
 * is left to Python with nothing done, and Python refuses it with the right error. Two failures are
 * answered here all the same: ENOENT of a LOOKUP, and a failure after a file was made or closed on
 * the host. Must not know rings; a request is a chain of buffers.
 */
#ifndef PORTHOLE_REQUEST_H
#define PORTHOLE_REQUEST_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>

#include "buffers.h"
#include "mount.h"

/* The request is Python's; nothing has been done. */
#define PH_PYTHON INT64_MIN

/* Buffers that the thread of a queue keeps from request to request. */
struct ph_worker;

/* For one thread; says whether its umask is no other thread's. NULL: no memory */
struct ph_worker *ph_worker_new(bool private_umask);
void ph_worker_delete(struct ph_worker *worker);

/* Copy a request's header out of guest memory, where it is not read again; false: there is none. */
bool ph_fuse_read_header(const struct ph_chain *chain, struct fuse_in_header *header);
/* Serve the request of that header; returns the bytes written to the reply, or PH_PYTHON. */
int64_t ph_fuse_dispatch(struct ph_worker *worker, struct ph_mount *mount,
                         const struct ph_chain *chain, const struct fuse_in_header *header);
/* Read the header and dispatch. */
int64_t ph_fuse_serve(struct ph_worker *worker, struct ph_mount *mount,
                      const struct ph_chain *chain);

#endif

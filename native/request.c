#include "request.h"

#include <limits.h>
#include <stdlib.h>

#include "buffers.h"
#include "operations.h"

/* The table in operations/table.py has the same lengths. */
static const struct {
    int64_t (*run)(struct ph_request *request);
    uint16_t args;        /* bytes that the body has at least */
    uint16_t reply_bytes; /* room that the reply's data needs at least */
    bool streamed;        /* what follows the arguments is not copied */
    bool silent;          /* there is no reply */
} OPERATIONS[] = {
    [FUSE_LOOKUP] = {.run = ph_do_lookup, .reply_bytes = sizeof(struct fuse_entry_out)},
    [FUSE_FORGET] = {.run = ph_do_forget, .args = sizeof(struct fuse_forget_in), .silent = true},
    [FUSE_BATCH_FORGET] = {.run = ph_do_batch_forget,
                           .args = sizeof(struct fuse_batch_forget_in),
                           .silent = true},
    [FUSE_GETATTR] = {.run = ph_do_getattr,
                      .args = sizeof(struct fuse_getattr_in),
                      .reply_bytes = sizeof(struct fuse_attr_out)},
    [FUSE_GETXATTR] = {.run = ph_do_getxattr, .args = sizeof(struct fuse_getxattr_in)},
    [FUSE_OPEN] = {.run = ph_do_open,
                   .args = sizeof(struct fuse_open_in),
                   .reply_bytes = sizeof(struct fuse_open_out)},
    [FUSE_OPENDIR] = {.run = ph_do_opendir,
                      .args = sizeof(struct fuse_open_in),
                      .reply_bytes = sizeof(struct fuse_open_out)},
    [FUSE_RELEASE] = {.run = ph_do_release, .args = sizeof(struct fuse_release_in)},
    [FUSE_RELEASEDIR] = {.run = ph_do_releasedir, .args = sizeof(struct fuse_release_in)},
    [FUSE_FLUSH] = {.run = ph_do_flush, .args = sizeof(struct fuse_flush_in)},
    [FUSE_READ] = {.run = ph_do_read, .args = sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {.run = ph_do_write,
                    .args = sizeof(struct fuse_write_in),
                    .reply_bytes = sizeof(struct fuse_write_out),
                    .streamed = true},
    [FUSE_CREATE] = {.run = ph_do_create,
                     .args = sizeof(struct fuse_create_in),
                     .reply_bytes = sizeof(struct ph_created)},
    [FUSE_UNLINK] = {.run = ph_do_unlink},
    [FUSE_READDIR] = {.run = ph_do_readdir, .args = sizeof(struct fuse_read_in)},
    [FUSE_READDIRPLUS] = {.run = ph_do_readdirplus, .args = sizeof(struct fuse_read_in)},
};

struct ph_worker *ph_worker_new(bool private_umask)
{
    struct ph_worker *worker = calloc(1, sizeof(*worker));

    if (worker && !(worker->data = malloc(IOV_MAX * sizeof(struct iovec)))) {
        free(worker);
        return NULL;
    }
    if (worker)
        worker->private_umask = private_umask;
    return worker;
}

void ph_worker_delete(struct ph_worker *worker)
{
    free(worker->listing);
    free(worker->data);
    free(worker);
}

int64_t ph_reply(const struct ph_request *request, const void *data, size_t length)
{
    ph_buffers_write(request->chain->writable, PH_OUT_HEADER, data, length);
    return (int64_t)length;
}

struct ph_node *ph_pin_native(struct ph_request *request)
{
    struct ph_node *node = ph_node_pin(request->mount, request->header.nodeid);

    if (node && ph_node_rules(node)->to_python) {
        ph_node_unpin(request->mount, node);
        return NULL;
    }
    return node;
}

bool ph_fuse_read_header(const struct ph_chain *chain, struct fuse_in_header *header)
{
    if (chain->readable_bytes < sizeof(*header))
        return false;
    ph_buffers_read(chain->readable, 0, header, sizeof(*header));
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
    struct ph_request request;
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
        (!silent && chain->writable_bytes < PH_OUT_HEADER + OPERATIONS[opcode].reply_bytes))
        return PH_PYTHON;
    ph_buffers_read(chain->readable, sizeof(request.header), request.body, request.body_bytes);
    request.worker = worker;
    request.mount = mount;
    request.chain = chain;
    request.space_bytes = silent ? 0 : chain->writable_bytes - PH_OUT_HEADER;
    result = OPERATIONS[opcode].run(&request);
    if (result == PH_PYTHON || silent)
        return result;
    out.unique = request.header.unique;
    out.error = result < 0 ? (int32_t)result : 0;
    out.len = (uint32_t)(PH_OUT_HEADER + (result < 0 ? 0 : (uint64_t)result));
    ph_buffers_write(chain->writable, 0, &out, sizeof(out));
    return out.len;
}

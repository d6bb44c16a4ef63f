#include "operations.h"

static void fill_attr(struct fuse_attr *attr, const struct ph_node *node, const struct stat *status)
{
    const struct ph_rules *rules = ph_node_rules(node);

    *attr = (struct fuse_attr){
        .ino = status->st_ino ^ ph_node_ino_mask(node),
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
        .flags = ph_node_is_submount(node) ? FUSE_ATTR_SUBMOUNT : 0,
    };
}

/* The host clears set-id bits when a file is written, and nothing else tells the guest. */
static uint32_t attr_valid_s(const struct ph_rules *rules, const struct stat *status)
{
    return S_ISREG(status->st_mode) && status->st_mode & (S_ISUID | S_ISGID) ? 0 : rules->valid_s;
}

void ph_fill_entry(struct fuse_entry_out *entry, const struct ph_node *node,
                   const struct stat *status)
{
    const struct ph_rules *rules = ph_node_rules(node);

    *entry = (struct fuse_entry_out){
        .nodeid = ph_node_id(node),
        .entry_valid = rules->valid_s,
        .attr_valid = attr_valid_s(rules, status),
    };
    fill_attr(&entry->attr, node, status);
}

int64_t ph_do_getattr(struct ph_request *request)
{
    struct ph_node *node = ph_pin_native(request);
    struct fuse_attr_out out = {0};
    struct stat status;
    int failed;

    if (!node)
        return PH_PYTHON;
    failed = fstat(ph_node_fd(node), &status);
    if (!failed) {
        out.attr_valid = attr_valid_s(ph_node_rules(node), &status);
        fill_attr(&out.attr, node, &status);
    }
    ph_node_unpin(request->mount, node);
    return failed ? PH_PYTHON : ph_reply(request, &out, sizeof(out));
}

#include "requests.h"

static const uint8_t OPCODES[] = {
    FUSE_LOOKUP,  FUSE_FORGET, FUSE_GETATTR,      FUSE_OPEN,    FUSE_READ,        FUSE_WRITE,
    FUSE_RELEASE, FUSE_FLUSH,  FUSE_OPENDIR,      FUSE_READDIR, FUSE_READDIRPLUS, FUSE_RELEASEDIR,
    FUSE_CREATE,  FUSE_UNLINK, FUSE_BATCH_FORGET, FUSE_INIT,
};

static size_t fixed_bytes(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_FORGET:
        return sizeof(struct fuse_forget_in);
    case FUSE_BATCH_FORGET:
        return sizeof(struct fuse_batch_forget_in);
    case FUSE_GETATTR:
        return sizeof(struct fuse_getattr_in);
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        return sizeof(struct fuse_open_in);
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        return sizeof(struct fuse_release_in);
    case FUSE_FLUSH:
        return sizeof(struct fuse_flush_in);
    case FUSE_CREATE:
        return sizeof(struct fuse_create_in);
    default:
        return 0;
    }
}

/* Fill in what matters of the fixed part of a body, from few bytes of the input. */
static void fill_fixed(struct input *input, uint32_t opcode, uint8_t *body, size_t rest)
{
    switch (opcode) {
    case FUSE_FORGET:
        *(uint8_t *)body = take8(input) % 4;
        break;
    case FUSE_BATCH_FORGET:
        ((struct fuse_batch_forget_in *)(void *)body)->count =
            (uint32_t)(rest / sizeof(struct fuse_forget_one));
        break;
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        uint8_t bits = take8(input);

        ((struct fuse_open_in *)(void *)body)->flags = (bits & 3u) | (bits & 0xfcu) << 6;
        break;
    }
    case FUSE_CREATE: {
        struct fuse_create_in *in = (void *)body;

        in->flags = take8(input) & 3u;
        in->mode = take16(input);
        break;
    }
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_FLUSH:
    case FUSE_GETATTR:
        body[opcode == FUSE_GETATTR ? 8 : 0] = take8(input) % 8; /* fh */
        break;
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
    case FUSE_WRITE: {
        struct fuse_write_in *in = (void *)body; /* begins as fuse_read_in does */

        in->fh = take8(input) % 8;
        in->offset = take16(input);
        in->size = opcode == FUSE_WRITE ? (uint32_t)rest : take16(input);
        if (opcode == FUSE_WRITE)
            in->write_flags = take8(input) & 7;
        break;
    }
    default:
        break;
    }
}

size_t request_make(struct input *input, uint8_t flags, uint8_t *bytes)
{
    struct fuse_in_header header = {.unique = take32(input)};
    size_t fixed, rest, length;

    if (flags & REQUEST_AS_IT_COMES) {
        length = take16(input) % REQUEST_MAX_BYTES;
        take_bytes(input, bytes, length);
        if (flags & 2 && length >= sizeof(header)) {
            uint32_t claimed = (uint32_t)length;

            memcpy(bytes, &claimed, sizeof(claimed));
        }
        return length;
    }
    header.opcode = OPCODES[take8(input) % sizeof(OPCODES)];
    header.nodeid = take8(input) % 16;
    header.uid = flags & 4 ? 1000 : 0;
    header.gid = flags & 8 ? 1000 : 0;
    fixed = fixed_bytes(header.opcode);
    rest = flags & 16 ? take16(input) % (REQUEST_MAX_BYTES - 256) : take8(input);
    length = sizeof(header) + fixed + rest;
    header.len = (uint32_t)length;
    memcpy(bytes, &header, sizeof(header));
    memset(bytes + sizeof(header), 0, fixed);
    fill_fixed(input, header.opcode, bytes + sizeof(header), rest);
    take_bytes(input, bytes + sizeof(header) + fixed, rest);
    return length;
}

void request_check_reply(const struct fuse_in_header *header, const uint8_t *replied,
                         int64_t written, uint64_t room)
{
    struct fuse_out_header out;

    if (header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET) {
        HOLDS(!written);
        return;
    }
    HOLDS(written >= (int64_t)sizeof(out) && (uint64_t)written <= room);
    memcpy(&out, replied, sizeof(out));
    HOLDS(out.len == written && out.unique == header->unique);
    HOLDS(!out.error || (out.error < 0 && out.error > -4096 && out.len == sizeof(out)));
}

#include "buffers.h"

/* A place in a row of buffers, which moves on. */
struct cursor {
    const struct iovec *buffer;
    size_t offset;
};

/* Take the next bytes that lie in one buffer: up to `most`, which is not 0. */
static struct iovec take(struct cursor *cursor, size_t most)
{
    struct iovec piece;

    while (cursor->offset >= cursor->buffer->iov_len) {
        cursor->offset -= cursor->buffer->iov_len;
        cursor->buffer++;
    }
    piece.iov_base = (uint8_t *)cursor->buffer->iov_base + cursor->offset;
    piece.iov_len = cursor->buffer->iov_len - cursor->offset;
    if (piece.iov_len > most)
        piece.iov_len = most;
    cursor->offset += piece.iov_len;
    return piece;
}

int ph_buffers_cut(const struct iovec *row, size_t offset, size_t length, struct iovec *out)
{
    struct cursor cursor = {row, offset};
    int count = 0;

    for (size_t done = 0; done < length; done += out[count++].iov_len)
        out[count] = take(&cursor, length - done);
    return count;
}

void ph_buffers_read_across(const struct iovec *row, size_t offset, void *to, size_t length)
{
    struct cursor cursor = {row, offset};

    for (size_t done = 0; done < length;) {
        struct iovec piece = take(&cursor, length - done);

        memcpy((uint8_t *)to + done, piece.iov_base, piece.iov_len);
        done += piece.iov_len;
    }
}

void ph_buffers_write_across(const struct iovec *row, size_t offset, const void *from,
                             size_t length)
{
    struct cursor cursor = {row, offset};

    for (size_t done = 0; done < length;) {
        struct iovec piece = take(&cursor, length - done);

        memcpy(piece.iov_base, (const uint8_t *)from + done, piece.iov_len);
        done += piece.iov_len;
    }
}

#include "buffers.h"

enum { SMALLEST_PAGE_BYTES = 4096 };

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

void ph_buffers_touch(const struct iovec *row, uint32_t count)
{
    for (const struct iovec *buffer = row; buffer < row + count; buffer++) {
        const volatile uint8_t *start = buffer->iov_base;

        for (size_t at = 0; at < buffer->iov_len; at += SMALLEST_PAGE_BYTES)
            (void)start[at];
        (void)start[buffer->iov_len - 1];
    }
}

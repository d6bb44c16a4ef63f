/*
 * Rows of buffers, as a descriptor chain has them: copying from and to any place in a row, and
 * cutting a stretch out of it. `offset` and `length` lie within the row, which is not empty. Must
 * not know what the bytes mean.
 */
#ifndef PORTHOLE_BUFFERS_H
#define PORTHOLE_BUFFERS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

/* The buffers of one request; neighbours in memory are merged. */
struct ph_chain {
    struct iovec *readable;
    struct iovec *writable;
    uint32_t readable_count;
    uint32_t writable_count;
    uint64_t readable_bytes;
    uint64_t writable_bytes;
};

/* Describe a stretch as buffers for a system call; returns their number, at most the row's. */
int ph_buffers_cut(const struct iovec *row, size_t offset, size_t length, struct iovec *out);

/* Like ph_buffers_read and ph_buffers_write, but without the short cut for the first buffer. */
void ph_buffers_read_across(const struct iovec *row, size_t offset, void *to, size_t length);
void ph_buffers_write_across(const struct iovec *row, size_t offset, const void *from,
                             size_t length);

/* Read a byte of each page: lost memory (lost_memory.h) is noticed so, not by system calls. */
void ph_buffers_touch(const struct iovec *row, uint32_t count);

/* A header lies in the first buffer and has a constant length, so it is copied by a few moves. */
static inline void ph_buffers_read(const struct iovec *row, size_t offset, void *to, size_t length)
{
    if (offset + length <= row->iov_len)
        memcpy(to, (const uint8_t *)row->iov_base + offset, length);
    else
        ph_buffers_read_across(row, offset, to, length);
    /* The guest may change the original, so only the copy is checked and used. */
    __asm__ volatile("" ::: "memory");
}

static inline void ph_buffers_write(const struct iovec *row, size_t offset, const void *from,
                                    size_t length)
{
    if (offset + length <= row->iov_len)
        memcpy((uint8_t *)row->iov_base + offset, from, length);
    else
        ph_buffers_write_across(row, offset, from, length);
}

#endif

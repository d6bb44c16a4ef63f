/*
 * Frames from a back end to the guest: VIRTIO 1.2, section 5.1.6.3.
 *
 * A frame is read straight into the guest's buffers, behind the place of its header, unless it is a
 * short one of a stream. The header is written last, and all chains of the frame are given back in
 * one step. Without buffers nothing is read: frames wait where the kernel bounds them.
 */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "held_chains.h"
#include "net_private.h"

enum { OWN_BUFFERS = 2 }; /* beside those of the guest, in a row for readv */

/* Behind a short frame of a stream so much is read ahead and copied, which costs less than a call
 * for each of the short frames that are likely to follow; behind others the next length alone. */
enum { SHORT_BYTES = 2048, AHEAD_BYTES = 32768 };

struct receiver {
    struct ph_queue *queue;
    struct ph_net *net;
    struct ph_held held;
    uint32_t ahead_bytes; /* of a stream, to read behind a frame */
    struct iovec iov[PH_MOST_HELD_BUFFERS + OWN_BUFFERS];
};

/* Hold chains for so many bytes; otherwise why there are not enough of them. */
static enum ph_take hold(struct receiver *receiver, uint64_t bytes)
{
    struct ph_held *held = &receiver->held;
    enum ph_take take = PH_TAKE_CHAIN;

    while (take == PH_TAKE_CHAIN && held->bytes < bytes) {
        struct ph_chain chain;

        if (held->count == ph_queue_size(receiver->queue) ||
            (held->count && !receiver->net->setup.mergeable)) {
            take = PH_TAKE_FULL;
        } else {
            take = ph_held_take(held, &chain);
            if (take == PH_TAKE_CHAIN && (chain.readable_count || !chain.writable_count)) {
                ph_held_put_back(held, 1);
                take = PH_TAKE_PYTHON;
            }
        }
    }
    receiver->net->state.held = held->count;
    return take;
}

/* Count a frame that the chains that there can be do not hold. */
static int drop(struct receiver *receiver, int outcome)
{
    ph_queue_counters(receiver->queue)->frames_dropped++;
    return outcome;
}

static int drop_too_long(struct receiver *receiver)
{
    bool is_bound = receiver->net->setup.mergeable && receiver->held.count == PH_MOST_HELD;

    return drop(receiver, is_bound ? PH_OUTCOME_BOUND : PH_GO_ON);
}

/* Give a frame to the guest that lies in its buffers, behind room for the header. */
static void give(struct receiver *receiver, struct virtio_net_hdr_v1 *header, uint64_t bytes)
{
    struct ph_held *held = &receiver->held;
    uint16_t count = 0;

    for (uint64_t room = 0; room < bytes; count++)
        room += held->chains[count].bytes;
    header->flags &= (uint8_t)receiver->net->setup.received_flags;
    header->num_buffers = htole16(count);
    ph_buffers_write(held->row, 0, header, PH_NET_HEADER_BYTES);
    ph_held_push(held, count, bytes);
}

static void charge(struct receiver *receiver, uint64_t frame_bytes)
{
    struct ph_cost cost = {0};

    ph_net_add_cost(&cost, frame_bytes);
    ph_net_charge(receiver->net->setup.receive_limiter, &cost);
}

static int wait_for_tokens(struct receiver *receiver)
{
    return ph_net_wait_for_tokens(receiver->queue, receiver->net->setup.receive_limiter);
}

/* What a read that brought nothing means. */
static int not_read(struct receiver *receiver, ssize_t got)
{
    if (got < 0 && errno == EINTR)
        return PH_GO_ON;
    if (got < 0 && errno == EAGAIN)
        return ph_net_wait_for_fd(receiver->queue, receiver->net, POLLIN);
    if (got < 0 && errno == EFAULT) { /* guest memory was lost: the device fails soon */
        ph_buffers_touch(receiver->held.row, receiver->held.buffers);
        return ph_queue_is_stopped(receiver->queue) ? PH_OUTCOME_STOPPED : PH_GO_ON;
    }
    receiver->net->state.receive_error = got < 0 ? errno : ECONNRESET;
    return PH_OUTCOME_FAILED;
}

/* Have room for a frame of which `direct` bytes are in the guest's buffers, and the rest in ours.
 */
static int give_from_tap(struct receiver *receiver, struct virtio_net_hdr_v1 *header,
                         uint64_t bytes, uint64_t direct)
{
    const struct ph_held *held = &receiver->held;

    while (held->bytes < bytes) {
        int outcome = PH_GO_ON;

        switch (hold(receiver, bytes)) {
        case PH_TAKE_CHAIN:
            break;
        case PH_TAKE_NOTHING:
            outcome = ph_net_wait_for_chains(receiver->queue);
            break;
        case PH_TAKE_FULL:
            return drop_too_long(receiver);
        case PH_TAKE_PYTHON:
            outcome = PH_OUTCOME_PYTHON;
            break;
        }
        if (outcome != PH_GO_ON)
            return drop(receiver, outcome);
    }
    if (bytes > PH_NET_HEADER_BYTES + direct)
        ph_buffers_write_across(held->row, PH_NET_HEADER_BYTES + direct, receiver->net->overflow,
                                bytes - PH_NET_HEADER_BYTES - direct);
    give(receiver, header, bytes);
    return PH_GO_ON;
}

/* Read one frame; a TAP cuts off what does not fit, so there is room for the longest one. */
static int read_from_tap(struct receiver *receiver)
{
    struct ph_net *net = receiver->net;
    const struct ph_held *held = &receiver->held;
    uint64_t direct = held->bytes > PH_NET_HEADER_BYTES ? held->bytes - PH_NET_HEADER_BYTES : 0;
    struct virtio_net_hdr_v1 header;
    struct iovec *iov = receiver->iov;
    int count = 0;
    ssize_t got;

    iov[count++] = (struct iovec){&header, PH_NET_HEADER_BYTES};
    count += ph_buffers_cut(held->row, PH_NET_HEADER_BYTES, direct, iov + count);
    iov[count++] = (struct iovec){net->overflow, sizeof(net->overflow)};
    got = readv(net->setup.fd, iov, count);
    if (got <= 0)
        return not_read(receiver, got);
    charge(receiver, got < PH_NET_HEADER_BYTES ? 0 : (uint64_t)got - PH_NET_HEADER_BYTES);
    if (got < PH_NET_HEADER_BYTES + PH_ETHERNET_HEADER_BYTES)
        return drop(receiver, PH_GO_ON);
    return give_from_tap(receiver, &header, (uint64_t)got, direct);
}

static int receive_from_tap(struct receiver *receiver)
{
    enum ph_take take = hold(receiver, receiver->net->setup.expected_bytes);

    if (receiver->held.count) {
        int outcome = wait_for_tokens(receiver);

        return outcome == PH_GO_ON ? read_from_tap(receiver) : outcome;
    }
    if (take == PH_TAKE_PYTHON)
        return PH_OUTCOME_PYTHON;
    return ph_net_wait_for_chains(receiver->queue);
}

/* Read into our buffer until it has `bytes`, or less, from the start of the next frame. */
static int read_ahead(struct receiver *receiver, uint32_t bytes)
{
    struct ph_stream *stream = receiver->net->setup.stream;
    uint32_t have = stream->read_end - stream->read_start;
    ssize_t got;

    memmove(stream->read, stream->read + stream->read_start, have);
    stream->read_start = 0;
    stream->read_end = have;
    got = read(receiver->net->setup.fd, stream->read + have, bytes - have);
    if (got <= 0)
        return not_read(receiver, got);
    stream->read_end += (uint32_t)got;
    return PH_GO_ON;
}

/* Leave a frame, of which the guest's buffers have the start, in our buffer. */
static void keep_start(struct receiver *receiver, uint32_t length, uint32_t got)
{
    struct ph_stream *stream = receiver->net->setup.stream;
    uint32_t announced = htobe32(length);

    memcpy(stream->read, &announced, sizeof(announced));
    if (got)
        ph_buffers_read_across(receiver->held.row, PH_NET_HEADER_BYTES,
                               stream->read + PH_LENGTH_BYTES, got);
    stream->read_start = 0;
    stream->read_end = PH_LENGTH_BYTES + got;
}

/* Read a frame whose length our buffer has, into chains that have room for it. */
static int read_from_stream(struct receiver *receiver, uint32_t length)
{
    struct ph_stream *stream = receiver->net->setup.stream;
    const struct ph_held *held = &receiver->held;
    struct virtio_net_hdr_v1 header = {.flags = VIRTIO_NET_HDR_F_DATA_VALID};
    uint32_t ahead = stream->read_end - stream->read_start - PH_LENGTH_BYTES;
    uint32_t got = ahead < length ? ahead : length;

    receiver->ahead_bytes = length <= SHORT_BYTES ? AHEAD_BYTES : PH_LENGTH_BYTES;
    stream->read_start += PH_LENGTH_BYTES;
    if (got)
        ph_buffers_write_across(held->row, PH_NET_HEADER_BYTES, stream->read + stream->read_start,
                                got);
    stream->read_start += got;
    while (got < length) {
        int count =
            ph_buffers_cut(held->row, PH_NET_HEADER_BYTES + got, length - got, receiver->iov);
        ssize_t read;

        receiver->iov[count++] = (struct iovec){stream->read, receiver->ahead_bytes};
        read = readv(receiver->net->setup.fd, receiver->iov, count);
        if (read <= 0) {
            int outcome = not_read(receiver, read);

            if (outcome != PH_GO_ON) {
                keep_start(receiver, length, got);
                return outcome;
            }
            continue;
        }
        if (read > length - got) {
            stream->read_start = 0;
            stream->read_end = (uint32_t)read - (length - got);
            got = length;
        } else {
            got += (uint32_t)read;
        }
    }
    charge(receiver, length);
    give(receiver, &header, PH_NET_HEADER_BYTES + length);
    return PH_GO_ON;
}

/* Take a frame out of the stream that no chains hold. */
static int skip_from_stream(struct receiver *receiver, uint32_t length)
{
    struct ph_stream *stream = receiver->net->setup.stream;

    if (stream->read_end - stream->read_start < PH_LENGTH_BYTES + length)
        return read_ahead(receiver, PH_LENGTH_BYTES + length);
    stream->read_start += PH_LENGTH_BYTES + length;
    charge(receiver, length);
    return drop_too_long(receiver);
}

static int receive_from_stream(struct receiver *receiver)
{
    struct ph_stream *stream = receiver->net->setup.stream;
    uint32_t length;
    enum ph_take take = hold(receiver, 1);
    int outcome;

    if (take == PH_TAKE_PYTHON)
        return PH_OUTCOME_PYTHON;
    if (take != PH_TAKE_CHAIN)
        return ph_net_wait_for_chains(receiver->queue);
    outcome = wait_for_tokens(receiver);
    if (outcome != PH_GO_ON)
        return outcome;
    if (stream->read_end - stream->read_start < PH_LENGTH_BYTES)
        return read_ahead(receiver, receiver->ahead_bytes);
    memcpy(&length, stream->read + stream->read_start, sizeof(length));
    length = be32toh(length);
    if (length < PH_ETHERNET_HEADER_BYTES || length > PH_MAX_STREAM_FRAME_BYTES) {
        receiver->net->state.receive_error = EPROTO;
        return PH_OUTCOME_FAILED;
    }
    switch (hold(receiver, PH_NET_HEADER_BYTES + length)) {
    case PH_TAKE_CHAIN:
        return read_from_stream(receiver, length);
    case PH_TAKE_FULL:
        return skip_from_stream(receiver, length);
    case PH_TAKE_PYTHON:
        return PH_OUTCOME_PYTHON;
    case PH_TAKE_NOTHING:
        break;
    }
    return ph_net_wait_for_chains(receiver->queue);
}

int ph_net_receive(struct ph_queue *queue, struct ph_net *net)
{
    struct receiver receiver = {.queue = queue, .net = net, .ahead_bytes = PH_LENGTH_BYTES};
    int outcome = PH_GO_ON;

    if (!ph_held_begin(&receiver.held, queue))
        return PH_OUTCOME_PYTHON;
    while (outcome == PH_GO_ON) {
        if (ph_queue_is_stopped(queue))
            outcome = PH_OUTCOME_STOPPED;
        else
            outcome =
                net->setup.stream ? receive_from_stream(&receiver) : receive_from_tap(&receiver);
    }
    ph_held_end(&receiver.held);
    if (outcome != PH_OUTCOME_BOUND) /* Python reports how many there were, and comes back */
        net->state.held = 0;
    return outcome;
}

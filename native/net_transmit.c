/*
 * Frames from the guest to a back end: VIRTIO 1.2, section 5.1.6.2.
 *
 * The header is copied and checked; the frame goes to the kernel from where it lies. A TAP takes
 * one frame with each call, and drops what it has no room for. A stream takes several, and in
 * parts.
 */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "held_chains.h"
#include "net_private.h"

enum { BATCH_BYTES = 128 << 10 };

static void count_drop(struct ph_queue *queue)
{
    ph_queue_counters(queue)->frames_dropped++;
}

/* Copy and check the header of the frame in a chain. */
static bool read_header(const struct ph_net *net, const struct ph_chain *chain,
                        struct virtio_net_hdr_v1 *header)
{
    if (chain->readable_bytes < PH_NET_HEADER_BYTES)
        return false;
    ph_buffers_read(chain->readable, 0, header, PH_NET_HEADER_BYTES);
    return ph_net_header_check(header, chain->readable_bytes - PH_NET_HEADER_BYTES,
                               &net->setup.offloads);
}

/* Describe the frame behind the header; returns how many buffers it has. */
static int cut_frame(const struct ph_chain *chain, struct iovec *out)
{
    return ph_buffers_cut(chain->readable, PH_NET_HEADER_BYTES,
                          chain->readable_bytes - PH_NET_HEADER_BYTES, out);
}

static bool write_to_tap(const struct ph_net *net, const struct ph_chain *chain, struct iovec *iov)
{
    struct virtio_net_hdr_v1 header;
    ssize_t written;
    int count;

    if (!read_header(net, chain, &header))
        return false;
    iov[0] = (struct iovec){&header, PH_NET_HEADER_BYTES};
    count = 1 + cut_frame(chain, iov + 1);
    do
        written = writev(net->setup.fd, iov, count);
    while (written < 0 && errno == EINTR);
    if (written < 0 && errno == EFAULT)
        ph_buffers_touch(chain->readable, chain->readable_count);
    return written >= 0; /* otherwise it is down, gone or full: like an unplugged cable */
}

static int transmit_to_tap(struct ph_queue *queue, struct ph_net *net, struct iovec *iov)
{
    struct ph_chain chain;

    switch (ph_queue_look(queue)) {
    case PH_LOOK_NOTHING:
        return ph_net_wait_for_chains(queue);
    case PH_LOOK_PYTHON:
        return PH_OUTCOME_PYTHON;
    case PH_LOOK_CHAIN:
        break;
    }
    if (!ph_queue_take(queue, &chain))
        return PH_OUTCOME_PYTHON;
    if (chain.readable_count > PH_MOST_HELD_BUFFERS) {
        ph_queue_put_back(queue, &chain);
        return PH_OUTCOME_PYTHON;
    }
    if (!write_to_tap(net, &chain, iov))
        count_drop(queue);
    ph_queue_push(queue, 0);
    return PH_GO_ON;
}

/* Frames on their way into a stream. */
struct batch {
    struct ph_queue *queue;
    struct ph_net *net;
    struct ph_held held;
    uint32_t lengths[PH_MOST_HELD]; /* big endian */
    uint64_t ends[PH_MOST_HELD];    /* of each frame, in bytes from the start of the batch */
    uint64_t sent;
    struct iovec *next; /* what follows what was sent */
    int left;           /* buffers from there on */
    struct iovec iov[PH_MOST_HELD_BUFFERS + PH_MOST_HELD];
};

static bool is_dropped(const struct batch *batch, uint32_t frame)
{
    return batch->ends[frame] == (frame ? batch->ends[frame - 1] : 0);
}

/* Add the latest chain to the batch; a frame that must not be sent has no bytes there. */
static void add(struct batch *batch, const struct ph_chain *chain)
{
    uint32_t frame = batch->held.count - 1;
    uint64_t end = frame ? batch->ends[frame - 1] : 0;
    uint64_t bytes = chain->readable_bytes - PH_NET_HEADER_BYTES;
    struct virtio_net_hdr_v1 header;

    if (read_header(batch->net, chain, &header) && bytes <= PH_MAX_STREAM_FRAME_BYTES) {
        batch->lengths[frame] = htobe32((uint32_t)bytes);
        batch->iov[batch->left++] = (struct iovec){&batch->lengths[frame], PH_LENGTH_BYTES};
        batch->left += cut_frame(chain, batch->iov + batch->left);
        end += PH_LENGTH_BYTES + bytes;
    }
    batch->ends[frame] = end;
}

/* Collect frames that are there; returns why there are no more. */
static enum ph_take collect(struct batch *batch)
{
    enum ph_take take = PH_TAKE_CHAIN;
    uint64_t bytes = 0;

    batch->next = batch->iov;
    batch->left = 0;
    batch->sent = 0;
    while (take == PH_TAKE_CHAIN && bytes < BATCH_BYTES) {
        struct ph_chain chain;

        take = ph_held_take(&batch->held, &chain);
        if (take == PH_TAKE_CHAIN) {
            add(batch, &chain);
            bytes = batch->ends[batch->held.count - 1];
        }
    }
    return take;
}

/* Move on behind what was sent. */
static void advance(struct batch *batch, size_t sent)
{
    batch->sent += sent;
    while (batch->left && sent >= batch->next->iov_len) {
        sent -= batch->next->iov_len;
        batch->next++;
        batch->left--;
    }
    if (sent) {
        batch->next->iov_base = (uint8_t *)batch->next->iov_base + sent;
        batch->next->iov_len -= sent;
    }
}

/* What a send that took nothing means. */
static int not_sent(struct ph_queue *queue, struct ph_net *net)
{
    if (errno == EINTR)
        return PH_GO_ON;
    if (errno == EAGAIN)
        return ph_net_wait_for_fd(queue, net, POLLOUT);
    net->state.transmit_error = errno;
    return PH_OUTCOME_FAILED;
}

/* Send the end of a frame, which an earlier call has left. */
static int send_unsent(struct ph_queue *queue, struct ph_net *net)
{
    struct ph_stream *stream = net->setup.stream;
    int outcome = PH_GO_ON;

    while (outcome == PH_GO_ON && stream->unsent_start < stream->unsent_end) {
        ssize_t sent = send(net->setup.fd, stream->unsent + stream->unsent_start,
                            stream->unsent_end - stream->unsent_start, MSG_NOSIGNAL);

        if (sent < 0)
            outcome = not_sent(queue, net);
        else
            stream->unsent_start += (uint32_t)sent;
    }
    return outcome;
}

static int send_batch(struct batch *batch)
{
    int outcome = PH_GO_ON;

    while (outcome == PH_GO_ON && batch->left) {
        struct msghdr message = {
            .msg_iov = batch->next,
            .msg_iovlen = (size_t)(batch->left < IOV_MAX ? batch->left : IOV_MAX),
        };
        ssize_t sent = sendmsg(batch->net->setup.fd, &message, MSG_NOSIGNAL);

        if (sent >= 0) {
            advance(batch, (size_t)sent);
        } else if (errno == EFAULT) { /* guest memory was lost: the device fails soon */
            ph_buffers_touch(batch->next, (uint32_t)batch->left);
            if (ph_queue_is_stopped(batch->queue))
                outcome = PH_OUTCOME_STOPPED;
        } else {
            outcome = not_sent(batch->queue, batch->net);
        }
    }
    return outcome;
}

/* Leave the end of the frame that was sent in part to a later call, so that the stream goes on. */
static void keep_unsent(struct batch *batch, uint64_t end)
{
    struct ph_stream *stream = batch->net->setup.stream;
    uint32_t bytes = (uint32_t)(end - batch->sent);

    ph_buffers_read_across(batch->next, 0, stream->unsent, bytes);
    stream->unsent_start = 0;
    stream->unsent_end = bytes;
}

/* Give back the chains whose frames were sent, if only in part, or are dropped. */
static void finish(struct batch *batch, int outcome)
{
    bool is_lost = outcome == PH_OUTCOME_FAILED;
    uint32_t count = 0;

    for (uint64_t start = 0; count < batch->held.count; start = batch->ends[count++]) {
        uint64_t end = batch->ends[count];

        if (is_dropped(batch, count)) {
            count_drop(batch->queue);
        } else if (end > batch->sent) {
            if (is_lost)
                count_drop(batch->queue);
            else if (start < batch->sent)
                keep_unsent(batch, end);
            else
                break;
        }
    }
    ph_held_push(&batch->held, count, 0);
    ph_held_put_back(&batch->held, batch->held.count);
}

static int transmit_to_stream(struct batch *batch)
{
    enum ph_take take = collect(batch);
    int outcome;

    if (!batch->held.count)
        return take == PH_TAKE_PYTHON ? PH_OUTCOME_PYTHON : ph_net_wait_for_chains(batch->queue);
    outcome = send_batch(batch);
    finish(batch, outcome);
    return outcome;
}

static int transmit(struct batch *batch)
{
    int outcome = send_unsent(batch->queue, batch->net);

    while (outcome == PH_GO_ON) {
        if (ph_queue_is_stopped(batch->queue))
            outcome = PH_OUTCOME_STOPPED;
        else
            outcome = transmit_to_stream(batch);
    }
    return outcome;
}

int ph_net_transmit(struct ph_queue *queue, struct ph_net *net)
{
    int outcome = PH_GO_ON;

    if (net->setup.stream) {
        struct batch batch = {.queue = queue, .net = net};

        if (!ph_held_begin(&batch.held, queue))
            return PH_OUTCOME_PYTHON;
        outcome = transmit(&batch);
        ph_held_end(&batch.held);
    } else {
        struct iovec iov[1 + PH_MOST_HELD_BUFFERS];

        while (outcome == PH_GO_ON)
            outcome =
                ph_queue_is_stopped(queue) ? PH_OUTCOME_STOPPED : transmit_to_tap(queue, net, iov);
    }
    return outcome;
}

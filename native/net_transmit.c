/*
 * Frames from the guest to a back end: VIRTIO 1.2, section 5.1.6.2.
 *
 * The header and the start of the frame are copied, checked and sent from the copy; the rest goes
 * to the kernel from where it lies. A TAP takes one frame with each call, and drops what it has no
 * room for. A stream takes several, and in parts.
 */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "held_chains.h"
#include "net_private.h"

enum { BATCH_BYTES = 128 << 10 };

static int wait_for_tokens(struct ph_queue *queue, const struct ph_net *net)
{
    return ph_net_wait_for_tokens(queue, net->setup.transmit_limiter);
}

/* What a chain costs, also one that is dropped. */
static void add_cost(struct ph_cost *cost, uint64_t readable_bytes)
{
    bool has_frame = readable_bytes > PH_NET_HEADER_BYTES;

    ph_net_add_cost(cost, has_frame ? readable_bytes - PH_NET_HEADER_BYTES : 0);
}

static void count_drop(struct ph_queue *queue)
{
    ph_queue_counters(queue)->frames_dropped++;
}

/* What is copied of a chain. */
struct start {
    struct virtio_net_hdr_v1 header;
    uint8_t frame[PH_START_BYTES];
};

static uint32_t start_bytes(uint64_t frame_bytes)
{
    return frame_bytes < PH_START_BYTES ? (uint32_t)frame_bytes : PH_START_BYTES;
}

/* Copy the header and the start of the frame in a chain, and check both; false: it is dropped. */
static bool read_start(struct ph_queue *queue, const struct ph_net *net,
                       const struct ph_chain *chain, struct start *start)
{
    uint64_t bytes = chain->readable_bytes - PH_NET_HEADER_BYTES;
    bool is_own;

    if (chain->readable_bytes < PH_NET_HEADER_BYTES)
        return false;
    ph_buffers_read(chain->readable, 0, start, PH_NET_HEADER_BYTES + start_bytes(bytes));
    if (!ph_net_header_check(&start->header, bytes, &net->setup.offloads))
        return false;
    is_own = ph_net_source_is_own(&net->setup.source, start->frame, start_bytes(bytes),
                                  ph_net_header_checksum_at(&start->header));
    ph_queue_counters(queue)->frames_spoofed += !is_own;
    return is_own;
}

/* Describe the frame behind its start; returns how many buffers it has. */
static int cut_rest(const struct ph_chain *chain, struct iovec *out)
{
    uint64_t bytes = chain->readable_bytes - PH_NET_HEADER_BYTES;
    uint32_t start = start_bytes(bytes);

    return ph_buffers_cut(chain->readable, PH_NET_HEADER_BYTES + start, bytes - start, out);
}

static bool write_to_tap(struct ph_queue *queue, const struct ph_net *net,
                         const struct ph_chain *chain, struct iovec *iov)
{
    uint64_t bytes = chain->readable_bytes - PH_NET_HEADER_BYTES;
    struct start start;
    ssize_t written;
    int count;

    if (!read_start(queue, net, chain, &start))
        return false;
    iov[0] = (struct iovec){&start, PH_NET_HEADER_BYTES + start_bytes(bytes)};
    count = 1 + cut_rest(chain, iov + 1);
    do
        written = writev(net->setup.fd, iov, count);
    while (written < 0 && errno == EINTR);
    if (written < 0 && errno == EFAULT)
        ph_buffers_touch(chain->readable, chain->readable_count);
    return written >= 0; /* otherwise it is down, gone or full: like an unplugged cable */
}

static int transmit_to_tap(struct ph_queue *queue, struct ph_net *net, struct iovec *iov)
{
    struct ph_cost cost = {0};
    struct ph_chain chain;
    int outcome;

    switch (ph_queue_look(queue)) {
    case PH_LOOK_NOTHING:
        return ph_net_wait_for_chains(queue);
    case PH_LOOK_PYTHON:
        return PH_OUTCOME_PYTHON;
    case PH_LOOK_CHAIN:
        break;
    }
    outcome = wait_for_tokens(queue, net);
    if (outcome != PH_GO_ON)
        return outcome;
    if (!ph_queue_take(queue, &chain))
        return PH_OUTCOME_PYTHON;
    if (chain.readable_count > PH_MOST_HELD_BUFFERS) {
        ph_queue_put_back(queue, &chain);
        return PH_OUTCOME_PYTHON;
    }
    add_cost(&cost, chain.readable_bytes);
    ph_net_charge(net->setup.transmit_limiter, &cost);
    if (!write_to_tap(queue, net, &chain, iov))
        count_drop(queue);
    ph_queue_push(queue, 0);
    return PH_GO_ON;
}

/* The start of a frame of a stream. */
struct framed {
    uint32_t length; /* of the frame, big endian */
    uint8_t frame[PH_START_BYTES];
};

/* Frames on their way into a stream. */
struct batch {
    struct ph_queue *queue;
    struct ph_net *net;
    struct ph_held held;
    struct framed starts[PH_MOST_HELD];
    uint64_t ends[PH_MOST_HELD]; /* of each frame, in bytes from the start of the batch */
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
    struct framed *framed = &batch->starts[frame];
    struct start start;

    if (read_start(batch->queue, batch->net, chain, &start) && bytes <= PH_MAX_STREAM_FRAME_BYTES) {
        framed->length = htobe32((uint32_t)bytes);
        memcpy(framed->frame, start.frame, start_bytes(bytes));
        batch->iov[batch->left++] = (struct iovec){framed, PH_LENGTH_BYTES + start_bytes(bytes)};
        batch->left += cut_rest(chain, batch->iov + batch->left);
        end += PH_LENGTH_BYTES + bytes;
    }
    batch->ends[frame] = end;
}

/* Collect frames that are there; returns why there are no more. */
static enum ph_take collect(struct batch *batch)
{
    enum ph_take take = PH_TAKE_CHAIN;
    struct ph_cost cost = {0};
    uint64_t bytes = 0;

    batch->next = batch->iov;
    batch->left = 0;
    batch->sent = 0;
    while (take == PH_TAKE_CHAIN && bytes < BATCH_BYTES &&
           ph_net_admits(batch->net->setup.transmit_limiter, &cost)) {
        struct ph_chain chain;

        take = ph_held_take(&batch->held, &chain);
        if (take == PH_TAKE_CHAIN) {
            add(batch, &chain);
            add_cost(&cost, chain.readable_bytes);
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
    struct ph_cost cost = {0};
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
        add_cost(&cost, batch->held.chains[count].readable_bytes);
    }
    ph_net_charge(batch->net->setup.transmit_limiter, &cost);
    ph_held_push(&batch->held, count, 0);
    ph_held_put_back(&batch->held, batch->held.count);
}

static int transmit_to_stream(struct batch *batch)
{
    enum ph_take take;
    int outcome = PH_GO_ON;

    if (ph_queue_look(batch->queue) == PH_LOOK_CHAIN)
        outcome = wait_for_tokens(batch->queue, batch->net);
    if (outcome != PH_GO_ON)
        return outcome;
    take = collect(batch);
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

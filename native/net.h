/*
 * The loops of a virtio-net queue pair: frames move between the guest's buffers and a descriptor
 * without a copy of ours.
 *
 * Python calls each on its queue's thread, without the interpreter's lock; it returns when there is
 * something for Python to do. Must not know where the descriptor leads.
 */
#ifndef PORTHOLE_NET_H
#define PORTHOLE_NET_H

#include "net_header.h"
#include "net_source.h"
#include "outcome.h"
#include "queue.h"
#include "rate_limit.h"

/* The same as in virtio_net.py and stream.py. */
enum {
    PH_LENGTH_BYTES = 4, /* before each frame of a stream: 32 bits, big endian */
    PH_MAX_STREAM_FRAME_BYTES = 65535,
    PH_STREAM_READ_BYTES = 2 * (PH_LENGTH_BYTES + PH_MAX_STREAM_FRAME_BYTES),
    PH_STREAM_UNSENT_BYTES = PH_LENGTH_BYTES + PH_MAX_STREAM_FRAME_BYTES,
};

/*
 * What is left of a stream between two calls, so that it never tears: read ahead, and the end of a
 * frame that the socket took in part. The receiving thread owns the first half, and the sending
 * thread the second one.
 */
struct ph_stream {
    uint32_t read_start;
    uint32_t read_end;
    uint32_t unsent_start;
    uint32_t unsent_end;
    uint8_t read[PH_STREAM_READ_BYTES];
    uint8_t unsent[PH_STREAM_UNSENT_BYTES];
};

struct ph_net_setup {
    struct ph_stream *stream; /* NULL: the descriptor keeps frames apart, behind headers (TAP) */
    struct ph_limiter *receive_limiter; /* the caller owns both */
    struct ph_limiter *transmit_limiter;
    int32_t fd;              /* does not block; the caller owns it */
    uint32_t mergeable;      /* a frame may span chains (MRG_RXBUF) */
    uint32_t expected_bytes; /* chains for so much are held before a TAP is read, where possible */
    uint32_t received_flags; /* of a header, those that the guest has negotiated */
    struct ph_net_offloads offloads;
    struct ph_net_source source;
};

/* From any thread, for people: only that direction's thread writes it. */
struct ph_net_state {
    int32_t receive_error; /* an errno; why the loop failed */
    int32_t transmit_error;
    uint32_t held; /* chains that wait for frames */
};

struct ph_net;

struct ph_net *ph_net_new(const struct ph_net_setup *setup); /* NULL: no memory */
void ph_net_free(struct ph_net *net);
struct ph_net_state *ph_net_state(struct ph_net *net);

/* Each returns an enum ph_outcome. One thread may receive while another one transmits. */
int ph_net_receive(struct ph_queue *queue, struct ph_net *net);
int ph_net_transmit(struct ph_queue *queue, struct ph_net *net);

#endif

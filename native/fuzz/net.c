/*
 * Fuzz target: the loops of a virtio-net queue, native/net_receive.c and net_transmit.c, with the
 * header's check and everything below.
 *
 * The input is the guest's memory (ring and spans), and then what guest, back end and device do in
 * turn. The back end is the other end of a pair of sockets: one that keeps frames apart, as a TAP
 * does, or a stream. What leaves must be frames, behind headers that ask for nothing that was not
 * negotiated; a stream never tears. The target takes what a loop leaves in the ring, as Python
 * does. With MUTATING, the memory changes all the time.
 */
#include "../net.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../clock.h"
#include "fuzz.h"
#include "guest_memory.h"
#include "guest_ring.h"
#include "mutator.h"

enum {
    MAX_OPS = 100,
    MAX_FRAME = 1 << 17,
    SMALL_BUFFER_BYTES = 4608, /* so that a stream takes frames in part */
};

enum op { OFFER, DESCRIBE, POKE, ASK, SERVE, FEED, DRAIN, ATTACH, OPS };

/* Of one input. */
static struct run {
    struct ph_queue_setup setup;
    struct ph_counters counters;
    struct ph_queue *queue;
    struct ph_net_setup net_setup;
    struct ph_net *net;
    bool receives;
    int ours, theirs;
    uint64_t fed; /* frames, of a TAP */
    struct ph_stream stream;
    uint8_t drained[MAX_FRAME]; /* of a stream, the start of a frame */
    size_t drained_bytes;
} now;

static int kick_fd, call_fd, stop_fd, wake_fd;
static struct ph_limiter *limiter; /* of both directions; a loop that has to wait is woken */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    kick_fd = eventfd(0, EFD_NONBLOCK);
    call_fd = eventfd(0, EFD_NONBLOCK);
    stop_fd = eventfd(0, EFD_NONBLOCK);
    wake_fd = eventfd(1, EFD_NONBLOCK); /* a loop ends when it has nothing to do */
    limiter = ph_limiter_new(-1);
    memory_make();
    return 0;
}

static void connect_back_end(void)
{
    int ends[2], size = SMALL_BUFFER_BYTES;

    HOLDS(!socketpair(
        AF_UNIX, (now.net_setup.stream ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_NONBLOCK, 0, ends));
    now.ours = now.net_setup.fd = ends[0];
    now.theirs = ends[1];
    if (now.net_setup.stream)
        HOLDS(!setsockopt(now.ours, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)));
    memset(&now.stream, 0, offsetof(struct ph_stream, read));
    now.drained_bytes = 0;
    HOLDS((now.net = ph_net_new(&now.net_setup)));
}

static void disconnect_back_end(void)
{
    ph_net_free(now.net);
    close(now.ours);
    close(now.theirs);
}

/* Serve the ring from where it was left, as a queue's thread does when it begins. */
static void attach(struct ph_queue_state state)
{
    HOLDS((now.queue = ph_queue_new(&now.setup)));
    *ph_queue_state(now.queue) = state;
    ph_queue_state(now.queue)->spin_ns = 0;
    ph_queue_set_wake(now.queue, wake_fd);
}

/* Let two frames through, and few more, or all. */
static void limit(bool is_limited)
{
    struct ph_rate_limit none = {0}, two = {.packets = {1, 2}};

    ph_limiter_set(limiter, &none, ph_now_ns());
    if (is_limited)
        ph_limiter_set(limiter, &two, ph_now_ns());
}

/* Check a header against section 5.1.6.2, without the code that is tested. */
static void check_header(const struct virtio_net_hdr_v1 *header, size_t frame_bytes)
{
    const struct ph_net_offloads *may = &now.net_setup.offloads;
    uint8_t kind = header->gso_type & 0x7f;

    HOLDS(frame_bytes >= 14 && frame_bytes <= 65550);
    HOLDS(header->flags <= 1 && header->num_buffers == 0);
    HOLDS(header->flags ? may->csum && header->csum_start >= 14
                        : !header->csum_start && !header->csum_offset);
    if (header->flags)
        HOLDS((size_t)header->csum_start + header->csum_offset + 2 <= frame_bytes);
    if (!header->gso_type) {
        HOLDS(!header->gso_size && !header->hdr_len);
        return;
    }
    HOLDS(header->flags && header->gso_size && header->hdr_len <= frame_bytes);
    HOLDS((kind == 1 && may->tso4) || (kind == 4 && may->tso6) || (kind == 5 && may->uso));
    HOLDS(!(header->gso_type & 0x80) || (kind != 5 && may->ecn));
}

/* Write, as a kernel does, what is asked for where the checksum is; it may be any number. */
static void complete_checksum(const struct virtio_net_hdr_v1 *header, uint8_t *frame)
{
    if (header->flags) {
        frame[header->csum_start + header->csum_offset] ^= 0xff;
        frame[header->csum_start + header->csum_offset + 1] ^= 0xff;
    }
}

/* Check that a frame has the guest's own addresses, without the code that is tested. */
static void check_source(const uint8_t *frame, size_t bytes)
{
    const struct ph_net_source *own = &now.net_setup.source;
    const uint8_t *type = frame + 12;

    if (!own->is_checked)
        return;
    HOLDS(!memcmp(frame + 6, own->mac, 6));
    while ((type[0] == 0x81 && type[1] == 0x00) || (type[0] == 0x88 && type[1] == 0xa8)) {
        type += 4;
        HOLDS(type <= frame + 20 && type + 2 <= frame + bytes);
    }
    if (type[0] != 0x08 || type[1] != 0x06)
        return;
    HOLDS(type + 30 <= frame + bytes);
    HOLDS(!memcmp(type + 10, own->mac, 6));
    if (own->has_ipv4)
        HOLDS(!memcmp(type + 16, own->ipv4, 4) || !memcmp(type + 16, "\0\0\0", 4));
}

/* Take whole frames off the start of what a stream has brought. */
static void check_stream(void)
{
    size_t at = 0;

    for (;;) {
        uint32_t length;

        if (now.drained_bytes - at < sizeof(length))
            break;
        memcpy(&length, now.drained + at, sizeof(length));
        length = be32toh(length);
        HOLDS(length >= 14 && length <= 65535);
        if (now.drained_bytes - at < sizeof(length) + length)
            break;
        check_source(now.drained + at + sizeof(length), length);
        at += sizeof(length) + length;
    }
    memmove(now.drained, now.drained + at, now.drained_bytes - at);
    now.drained_bytes -= at;
}

static void drain(void)
{
    for (;;) {
        ssize_t got;

        if (now.net_setup.stream) {
            got = read(now.theirs, now.drained + now.drained_bytes,
                       sizeof(now.drained) - now.drained_bytes);
            if (got <= 0)
                return;
            now.drained_bytes += (size_t)got;
            check_stream();
        } else {
            struct virtio_net_hdr_v1 header;

            got = read(now.theirs, now.drained, sizeof(now.drained));
            if (got <= 0)
                return;
            HOLDS((size_t)got >= sizeof(header));
            memcpy(&header, now.drained, sizeof(header));
            check_header(&header, (size_t)got - sizeof(header));
            complete_checksum(&header, now.drained + sizeof(header));
            check_source(now.drained + sizeof(header), (size_t)got - sizeof(header));
        }
    }
}

/* Send what a back end gives: frames that are right, or bytes as they come. */
static void feed(struct input *input)
{
    static uint8_t bytes[PH_LENGTH_BYTES + 70000];
    uint8_t flags = take8(input);
    uint32_t length = flags & 1 ? take16(input) : 14 + take8(input), announced;
    size_t size = length;

    memset(bytes, flags, sizeof(bytes));
    if (now.net_setup.stream) {
        announced = htobe32(flags & 2 ? take32(input) : length);
        memcpy(bytes, &announced, sizeof(announced));
        size += sizeof(announced);
        if (flags & 4)
            size = take16(input) % (size + 1);
    } else {
        take_bytes(input, bytes, 4);
        size += PH_NET_HEADER_BYTES;
    }
    if (write(now.theirs, bytes, size) > 0)
        now.fed++;
}

/* Make one buffer available: room for frames, or a frame behind a header that often makes sense. */
static void ask(struct input *input)
{
    static const uint8_t KINDS[] = {0, 0, 1, 4, 5, 0x81, 0x84, 0x85};
    const struct part *part = &parts[MEMORY_SPAN + take8(input) % MEMORY_SPANS];
    const struct ph_span *span = &spans[part - &parts[MEMORY_SPAN]];
    uint8_t choice = take8(input), start = take8(input), offset = take8(input);
    size_t at = take16(input) % part->size, length = choice & 1 ? take16(input) : 74;
    uint16_t flags = now.receives ? VRING_DESC_F_WRITE : 0, idx = guest_avail16(1);
    uint16_t slot = (uint16_t)(idx % now.setup.size);
    struct virtio_net_hdr_v1 header = {
        .flags = choice >> 1 & 1,
        .gso_type = KINDS[choice >> 2 & 7],
        .hdr_len = choice >> 5 & 1 ? 54 : offset,
        .gso_size = choice >> 6 & 1 ? 1448 : 0,
        .csum_start = start,
        .csum_offset = offset,
    };
    struct vring_desc desc;

    length = length < part->size - at ? length : part->size - at;
    desc = (struct vring_desc){span->gpa + at, (uint32_t)length, flags, 0};
    if (!now.receives)
        memcpy(part->start + at, &header, length < sizeof(header) ? length : sizeof(header));
    memcpy(parts[MEMORY_DESC].start + slot * sizeof(desc), &desc, sizeof(desc));
    memcpy(parts[MEMORY_AVAIL].start + 4 + 2 * slot, &slot, sizeof(slot));
    idx++;
    memcpy(parts[MEMORY_AVAIL].start + 2, &idx, sizeof(idx));
}

/* Take the next chain, and give it back with nothing written. */
static bool act_as_python(void)
{
    struct ph_chain chain;

    if (ph_queue_look(now.queue) != PH_LOOK_CHAIN || !ph_queue_take(now.queue, &chain))
        return false;
    ph_queue_push(now.queue, 0);
    return true;
}

static int serve_once(void)
{
    struct ph_queue_state was = *ph_queue_state(now.queue), *is = ph_queue_state(now.queue);
    uint64_t requests = now.counters.requests;
    uint16_t taken, given;
    int outcome =
        now.receives ? ph_net_receive(now.queue, now.net) : ph_net_transmit(now.queue, now.net);

    taken = (uint16_t)(is->next_avail - was.next_avail);
    given = (uint16_t)(is->next_used - was.next_used);
    HOLDS(taken == given && now.counters.requests - requests == given);
    HOLDS(outcome == PH_OUTCOME_BOUND || !ph_net_state(now.net)->held);
    return outcome;
}

static void serve(void)
{
    for (int i = 0; i < 2 * MAX_OPS; i++) {
        int outcome = serve_once();

        if (outcome == PH_OUTCOME_WOKEN)
            return;
        if (outcome == PH_OUTCOME_PYTHON) {
            if (!act_as_python())
                return; /* the ring is broken, until the guest mends it */
        } else if (outcome == PH_OUTCOME_FAILED) {
            HOLDS(now.net_setup.stream && now.receives);
            HOLDS(ph_net_state(now.net)->receive_error == EPROTO);
            disconnect_back_end();
            connect_back_end();
        } else {
            HOLDS(outcome == PH_OUTCOME_BOUND);
        }
    }
}

static void check_counters(void)
{
    if (now.receives && !now.net_setup.stream)
        HOLDS(now.counters.frames_dropped <= now.fed);
}

static void drive(struct input *input)
{
    struct ph_queue_state state;

    for (int i = 0; i < MAX_OPS && input->size; i++) {
        enum op op = take8(input) % OPS;

        switch (op) {
        case OFFER:
            guest_act(input, GUEST_OFFERS, now.setup.size);
            break;
        case DESCRIBE:
            guest_act(input, GUEST_DESCRIBES, now.setup.size);
            break;
        case POKE:
            guest_act(input, GUEST_POKES, now.setup.size);
            break;
        case ASK:
            ask(input);
            break;
        case SERVE:
            memory_remember();
            serve();
            check_counters();
            if (!now.receives)
                memory_check(false);
            break;
        case FEED:
            if (now.receives)
                feed(input);
            break;
        case DRAIN:
            drain();
            break;
        case ATTACH: /* the guest stops the ring, and starts it again */
            state = *ph_queue_state(now.queue);
            ph_queue_free(now.queue);
            attach(state);
            break;
        case OPS:
            break;
        }
    }
    drain();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_size)
{
    struct input input = {data, data_size};
    uint8_t flags = take8(&input), offloads = take8(&input);
    struct target targets[MEMORY_PARTS];

    memset(&now, 0, offsetof(struct run, stream));
    now.receives = flags & 1;
    now.net_setup = (struct ph_net_setup){
        .stream = flags & 2 ? &now.stream : NULL,
        .receive_limiter = limiter,
        .transmit_limiter = limiter,
        .mergeable = flags >> 2 & 1,
        .expected_bytes = flags & 8 ? 1530 : PH_NET_HEADER_BYTES + PH_MAX_FRAME_BYTES,
        .received_flags = flags & 16 ? 3 : 0,
        .offloads = {offloads & 1, offloads >> 1 & 1, offloads >> 2 & 1, offloads >> 3 & 1,
                     offloads >> 4 & 1},
    };
    now.setup = (struct ph_queue_setup){
        .spans = spans,
        .counters = &now.counters,
        .span_count = MEMORY_SPANS,
        .size = 1u << take8(&input) % 9,
        .kick_fd = kick_fd,
        .call_fd = call_fd,
        .stop_fd = stop_fd,
        .event_idx = flags >> 5 & 1,
        .indirect = flags >> 6 & 1,
    };
    memory_lay_out(&input, now.setup.size);
    now.setup.desc = parts[MEMORY_DESC].start;
    now.setup.avail = parts[MEMORY_AVAIL].start;
    now.setup.used = parts[MEMORY_USED].start;
    if (flags & 128) /* which memory that nobody has written to is */
        now.net_setup.source = (struct ph_net_source){.is_checked = 1, .has_ipv4 = offloads & 1};
    limit(offloads >> 5 == 7);
    connect_back_end();
    attach((struct ph_queue_state){0});
    for (int i = 0; i < MEMORY_PARTS; i++)
        targets[i] = (struct target){parts[i].start, parts[i].size};
    mutator_begin(targets, MEMORY_PARTS, data_size ? data[data_size - 1] + 256 * data_size : 0);
    drive(&input);
    mutator_end();
    ph_queue_free(now.queue);
    disconnect_back_end();
    return 0;
}

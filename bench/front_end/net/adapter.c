/* One virtio-net device, driven as drivers/net/virtio_net.c of Linux does: receive buffers of a
 * page that packets are merged from. A packet to send is one buffer, as a pool gives it to a driver
 * that bounces.
 *
 * Owns the buffers, and moves packets between the rings and the guest's interface: the interface's
 * reads and writes are the copies that a guest's bounce buffers take. Must not know what is
 * measured.
 */
#include "adapter.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>

#include "checksum.h"
#include "process.h"
#include "tap.h"

#define F(bit) (1ull << (bit))
#define POOL_BYTES (160ull << 20)

enum { MAX_MERGED = 64 };

static const uint64_t OFFLOADS = F(VIRTIO_NET_F_CSUM) | F(VIRTIO_NET_F_GUEST_CSUM) |
                                 F(VIRTIO_NET_F_GUEST_TSO4) | F(VIRTIO_NET_F_GUEST_TSO6) |
                                 F(VIRTIO_NET_F_HOST_TSO4) | F(VIRTIO_NET_F_HOST_TSO6) |
                                 F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO;

static void give_buffer(struct pair *pair, uint64_t *at)
{
    struct chain chain;

    chain.readable = 0;
    chain.writable = 1;
    chain.buffers[0] = (struct buffer){*at, PAGE_BYTES};
    if (!ring_add(&pair->receive, &chain, at))
        die("the receive ring has no room for its own buffers");
}

static void make_pair(struct pair *pair, struct ram *ram, unsigned index, uint64_t features)
{
    pair->base = ram->base;
    ring_make(&pair->receive, ram, 2 * index, RING_ENTRIES, features);
    ring_make(&pair->transmit, ram, 2 * index + 1, RING_ENTRIES, features);
    for (unsigned i = 0; i < RING_ENTRIES; i++) {
        pair->at_received[i] = ram_take(ram, PAGE_BYTES, PAGE_BYTES);
        pair->at_sent[i] = ram_take(ram, MAX_PACKET_BYTES, PAGE_BYTES);
        ram_touch(ram, pair->at_received[i], PAGE_BYTES);
        ram_touch(ram, pair->at_sent[i], MAX_PACKET_BYTES);
    }
}

/* With several pairs and no control queue, as QEMU attaches a device: a pair is used once its rings
 * are started. */
void adapter_attach(struct adapter *adapter, const struct options *options)
{
    struct connection *connection = &adapter->connection;
    struct ram *ram = &adapter->ram;
    uint64_t wanted = F_INDIRECT_DESC | F_EVENT_IDX | F(VIRTIO_NET_F_MRG_RXBUF) |
                      (options->no_offloads ? 0 : OFFLOADS) |
                      (options->pairs > 1 ? F(VIRTIO_NET_F_MQ) : 0);

    adapter->count = options->pairs;
    ram_make(ram, POOL_BYTES);
    connection_open(connection, options->socket, wanted);
    if (!(connection->features & F(VIRTIO_NET_F_MRG_RXBUF)))
        die("%s: the device does not merge receive buffers", options->socket);
    if (options->pairs > 1 && !(connection->features & F(VIRTIO_NET_F_MQ)))
        die("%s: the device has one pair of queues", options->socket);
    for (unsigned i = 0; i < adapter->count; i++) {
        struct pair *pair = &adapter->pairs[i];

        pair->polling = options->polling;
        pair->tap_fd = tap_open(options->interface, connection->features);
        make_pair(pair, ram, i, connection->features);
    }
    connection_attach(connection, ram);
    for (unsigned i = 0; i < adapter->count; i++) {
        connection_start_ring(connection, ram, &adapter->pairs[i].receive);
        connection_start_ring(connection, ram, &adapter->pairs[i].transmit);
    }
}

static void *await_used(const struct pair *pair, struct ring *ring, uint32_t *written)
{
    struct pollfd ready = {.fd = ring->call_fd, .events = POLLIN};
    void *owner;

    while (!(owner = ring_reap(ring, written))) {
        if (pair->polling) {
            sched_yield();
            continue;
        }
        if (!ring_arm(ring))
            continue;
        if (poll(&ready, 1, -1) < 0 && errno != EINTR)
            die("cannot wait for ring %u: %m", ring->index);
        ring_took_interrupt(ring);
        ring_hush(ring);
    }
    return owner;
}

void *pair_receive(void *argument)
{
    struct pair *pair = argument;
    struct traffic *traffic = &pair->received;
    uint8_t *base = pair->base;

    for (unsigned i = 0; i < RING_ENTRIES; i++)
        give_buffer(pair, &pair->at_received[i]);
    for (;;) {
        uint64_t *taken[MAX_MERGED];
        struct iovec parts[MAX_MERGED];
        struct virtio_net_hdr_v1 *header;
        uint32_t written, count;
        size_t bytes = 0;

        taken[0] = await_used(pair, &pair->receive, &written);
        header = (void *)(base + *taken[0]);
        count = header->num_buffers;
        if (written < HEADER_BYTES || count < 1 || count > MAX_MERGED)
            die("the device received %u bytes in %u buffers", written, count);
        for (unsigned i = 0; i < count; i++) {
            if (i)
                taken[i] = await_used(pair, &pair->receive, &written);
            if (written > PAGE_BYTES)
                die("the device wrote %u bytes to a page", written);
            parts[i] = (struct iovec){base + *taken[i], written};
            bytes += written;
        }
        checksum_vouch(header, (uint8_t *)header + HEADER_BYTES, parts[0].iov_len - HEADER_BYTES);
        traffic->packets++;
        traffic->bytes += bytes - HEADER_BYTES;
        traffic->dropped += !tap_write(pair->tap_fd, parts, count);
        for (unsigned i = 0; i < count; i++)
            give_buffer(pair, taken[i]);
    }
    return NULL;
}

void *pair_transmit(void *argument)
{
    struct pair *pair = argument;
    struct ring *ring = &pair->transmit;
    struct traffic *traffic = &pair->sent;
    unsigned free_count = RING_ENTRIES;
    uint64_t *free_buffers[RING_ENTRIES];

    for (unsigned i = 0; i < free_count; i++)
        free_buffers[i] = &pair->at_sent[i];
    for (;;) {
        struct virtio_net_hdr_v1 *header;
        struct chain chain;
        uint64_t *at, *done;
        uint32_t written;
        size_t bytes;

        while ((done = ring_reap(ring, &written)))
            free_buffers[free_count++] = done;
        if (!free_count)
            free_buffers[free_count++] = await_used(pair, ring, &written);
        at = free_buffers[--free_count];
        header = (void *)(pair->base + *at);
        bytes = tap_read(pair->tap_fd, (uint8_t *)header, pair->polling);
        /* A driver says nothing of checksums that were verified (section 5.1.6.2.1). */
        header->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
        header->num_buffers = 0;
        traffic->packets++;
        traffic->bytes += bytes - HEADER_BYTES;
        chain.readable = 1;
        chain.writable = 0;
        chain.buffers[0] = (struct buffer){*at, (uint32_t)bytes};
        if (!ring_add(ring, &chain, at))
            die("the transmit ring has no room for its own buffers");
    }
    return NULL;
}

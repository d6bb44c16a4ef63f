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

#include "checksum.h"
#include "process.h"
#include "tap.h"

#define F(bit) (1ull << (bit))
#define POOL_BYTES (64ull << 20)

enum { RECEIVE_QUEUE, TRANSMIT_QUEUE, MAX_MERGED = 64 };

static const uint64_t OFFLOADS = F(VIRTIO_NET_F_CSUM) | F(VIRTIO_NET_F_GUEST_CSUM) |
                                 F(VIRTIO_NET_F_GUEST_TSO4) | F(VIRTIO_NET_F_GUEST_TSO6) |
                                 F(VIRTIO_NET_F_HOST_TSO4) | F(VIRTIO_NET_F_HOST_TSO6);

static void give_buffer(struct adapter *adapter, uint64_t *at)
{
    struct chain chain;

    chain.readable = 0;
    chain.writable = 1;
    chain.buffers[0] = (struct buffer){*at, PAGE_BYTES};
    if (!ring_add(&adapter->receive, &chain, at))
        die("the receive ring has no room for its own buffers");
}

void adapter_attach(struct adapter *adapter, const char *socket, const char *tap, bool offloads)
{
    struct connection *connection = &adapter->connection;
    struct ram *ram = &adapter->ram;

    ram_make(ram, POOL_BYTES);
    connection_open(connection, socket,
                    F_INDIRECT_DESC | F_EVENT_IDX | F(VIRTIO_NET_F_MRG_RXBUF) |
                        (offloads ? OFFLOADS : 0));
    if (!(connection->features & F(VIRTIO_NET_F_MRG_RXBUF)))
        die("%s: the device does not merge receive buffers", socket);
    adapter->tap_fd = tap_open(tap, connection->features);
    ring_make(&adapter->receive, ram, RECEIVE_QUEUE, RING_ENTRIES, connection->features);
    ring_make(&adapter->transmit, ram, TRANSMIT_QUEUE, RING_ENTRIES, connection->features);
    for (unsigned i = 0; i < RING_ENTRIES; i++) {
        adapter->at_received[i] = ram_take(ram, PAGE_BYTES, PAGE_BYTES);
        adapter->at_sent[i] = ram_take(ram, MAX_PACKET_BYTES, PAGE_BYTES);
        ram_touch(ram, adapter->at_received[i], PAGE_BYTES);
        ram_touch(ram, adapter->at_sent[i], MAX_PACKET_BYTES);
    }
    connection_attach(connection, ram);
    connection_start_ring(connection, ram, &adapter->receive);
    connection_start_ring(connection, ram, &adapter->transmit);
}

static void *await_used(struct ring *ring, uint32_t *written)
{
    struct pollfd ready = {.fd = ring->call_fd, .events = POLLIN};
    void *owner;

    while (!(owner = ring_reap(ring, written))) {
        if (!ring_arm(ring))
            continue;
        if (poll(&ready, 1, -1) < 0 && errno != EINTR)
            die("cannot wait for ring %u: %m", ring->index);
        ring_took_interrupt(ring);
        ring_hush(ring);
    }
    return owner;
}

void *adapter_receive(void *argument)
{
    struct adapter *adapter = argument;
    struct traffic *traffic = &adapter->received;
    uint8_t *base = adapter->ram.base;

    for (unsigned i = 0; i < RING_ENTRIES; i++)
        give_buffer(adapter, &adapter->at_received[i]);
    for (;;) {
        uint64_t *taken[MAX_MERGED];
        struct iovec parts[MAX_MERGED];
        struct virtio_net_hdr_v1 *header;
        uint32_t written, count;
        size_t bytes = 0;

        taken[0] = await_used(&adapter->receive, &written);
        header = (void *)(base + *taken[0]);
        count = header->num_buffers;
        if (written < HEADER_BYTES || count < 1 || count > MAX_MERGED)
            die("the device received %u bytes in %u buffers", written, count);
        for (unsigned i = 0; i < count; i++) {
            if (i)
                taken[i] = await_used(&adapter->receive, &written);
            if (written > PAGE_BYTES)
                die("the device wrote %u bytes to a page", written);
            parts[i] = (struct iovec){base + *taken[i], written};
            bytes += written;
        }
        checksum_vouch(header, (uint8_t *)header + HEADER_BYTES, parts[0].iov_len - HEADER_BYTES);
        traffic->packets++;
        traffic->bytes += bytes - HEADER_BYTES;
        traffic->dropped += !tap_write(adapter->tap_fd, parts, count);
        for (unsigned i = 0; i < count; i++)
            give_buffer(adapter, taken[i]);
    }
    return NULL;
}

void *adapter_transmit(void *argument)
{
    struct adapter *adapter = argument;
    struct ring *ring = &adapter->transmit;
    struct traffic *traffic = &adapter->sent;
    unsigned free_count = RING_ENTRIES;
    uint64_t *free_buffers[RING_ENTRIES];

    for (unsigned i = 0; i < free_count; i++)
        free_buffers[i] = &adapter->at_sent[i];
    for (;;) {
        struct virtio_net_hdr_v1 *header;
        struct chain chain;
        uint64_t *at, *done;
        uint32_t written;
        size_t bytes;

        while ((done = ring_reap(ring, &written)))
            free_buffers[free_count++] = done;
        if (!free_count)
            free_buffers[free_count++] = await_used(ring, &written);
        at = free_buffers[--free_count];
        header = (void *)(adapter->ram.base + *at);
        bytes = tap_read(adapter->tap_fd, (uint8_t *)header);
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

/*
 * The header before each frame that a guest sends: VIRTIO 1.2, section 5.1.6.2.
 *
 * Owns what the kernel gets to see of it, by the rules of devices/net/protocol.py. Must not know
 * rings, buffers or descriptors.
 */
#ifndef PORTHOLE_NET_HEADER_H
#define PORTHOLE_NET_HEADER_H

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdint.h>

/* The same as in virtio_net.py. */
enum {
    PH_NET_HEADER_BYTES = 12,
    PH_ETHERNET_HEADER_BYTES = 14,
    PH_MAX_FRAME_BYTES = 65550,
    PH_GSO_UDP_L4 = 5, /* which older headers of the kernel do not have */
};

/* What was negotiated for frames that the guest sends. */
struct ph_net_offloads {
    uint32_t csum;
    uint32_t tso4;
    uint32_t tso6;
    uint32_t ecn;
    uint32_t uso;
};

/*
 * Check a header that was copied out of guest memory, and leave in it what was checked, and nothing
 * else. Returns false for a frame that must not be sent.
 */
bool ph_net_header_check(struct virtio_net_hdr_v1 *header, uint64_t frame_bytes,
                         const struct ph_net_offloads *offloads);

/* Where in the frame a checked header has the kernel write a checksum; 0: nowhere. */
uint32_t ph_net_header_checksum_at(const struct virtio_net_hdr_v1 *header);

#endif

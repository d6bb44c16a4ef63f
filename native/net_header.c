#include "net_header.h"

#include <endian.h>

/* Whether segments of this kind may be sent. */
static bool is_negotiated(uint8_t gso_type, const struct ph_net_offloads *offloads)
{
    bool has_ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN;

    switch (gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
        return offloads->tso4 && (!has_ecn || offloads->ecn);
    case VIRTIO_NET_HDR_GSO_TCPV6:
        return offloads->tso6 && (!has_ecn || offloads->ecn);
    case PH_GSO_UDP_L4:
        return offloads->uso && !has_ecn;
    default:
        return false;
    }
}

uint32_t ph_net_header_checksum_at(const struct virtio_net_hdr_v1 *header)
{
    if (!(header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM))
        return 0;
    return (uint32_t)le16toh(header->csum_start) + le16toh(header->csum_offset);
}

bool ph_net_header_check(struct virtio_net_hdr_v1 *header, uint64_t frame_bytes,
                         const struct ph_net_offloads *offloads)
{
    struct virtio_net_hdr_v1 checked = {.flags = header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                        .gso_type = header->gso_type};

    if (frame_bytes < PH_ETHERNET_HEADER_BYTES || frame_bytes > PH_MAX_FRAME_BYTES)
        return false;
    if (checked.flags) {
        uint32_t start = le16toh(header->csum_start);

        if (!offloads->csum || start < PH_ETHERNET_HEADER_BYTES ||
            start + le16toh(header->csum_offset) + 2 > frame_bytes)
            return false;
        checked.csum_start = header->csum_start;
        checked.csum_offset = header->csum_offset;
    }
    if (checked.gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        if (!checked.flags || !is_negotiated(checked.gso_type, offloads) || !header->gso_size ||
            le16toh(header->hdr_len) > frame_bytes)
            return false;
        checked.gso_size = header->gso_size;
        checked.hdr_len = header->hdr_len;
    }
    *header = checked;
    return true;
}

/* Checksums of packets that the device has verified, or has left out (VIRTIO 1.2,
 * section 5.1.6.4.1).
 *
 * A driver hands such a packet to its stack as one whose checksum is good. The TAP that stands for
 * that stack believes this of packets alone whose checksum is still to be completed: these have the
 * sum of the pseudo-header in its place. Must not know rings or the interface.
 */
#include "checksum.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <stdbool.h>
#include <string.h>

enum { TCP_CHECKSUM_AT = 16, UDP_CHECKSUM_AT = 6, CHECKSUM_BYTES = 2, NO_OFFSET = 0x1fff };

struct transport {
    size_t at; /* in the frame */
    unsigned protocol;
    uint32_t sum; /* of the pseudo-header, not folded */
};

static uint32_t add(uint32_t sum, const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i + 1 < bytes; i += 2)
        sum += (uint32_t)data[i] << 8 | data[i + 1];
    return sum;
}

static bool find_v4(struct transport *found, const uint8_t *frame, size_t bytes)
{
    struct ip ip;
    size_t header_bytes;

    if (bytes < ETH_HLEN + sizeof ip)
        return false;
    memcpy(&ip, frame + ETH_HLEN, sizeof ip);
    header_bytes = ip.ip_hl * 4u;
    if (header_bytes < sizeof ip || ntohs(ip.ip_len) < header_bytes ||
        ntohs(ip.ip_off) & (IP_MF | NO_OFFSET))
        return false;
    found->at = ETH_HLEN + header_bytes;
    found->protocol = ip.ip_p;
    found->sum = add(ntohs(ip.ip_len) - (uint32_t)header_bytes + ip.ip_p,
                     frame + ETH_HLEN + offsetof(struct ip, ip_src), 8);
    return true;
}

static bool find_v6(struct transport *found, const uint8_t *frame, size_t bytes)
{
    struct ip6_hdr ip;

    if (bytes < ETH_HLEN + sizeof ip)
        return false;
    memcpy(&ip, frame + ETH_HLEN, sizeof ip);
    found->at = ETH_HLEN + sizeof ip;
    found->protocol = ip.ip6_nxt;
    found->sum = add((uint32_t)ntohs(ip.ip6_plen) + ip.ip6_nxt,
                     frame + ETH_HLEN + offsetof(struct ip6_hdr, ip6_src), 32);
    return true;
}

void checksum_vouch(struct virtio_net_hdr_v1 *header, uint8_t *frame, size_t bytes)
{
    struct transport found;
    uint16_t type, offset;

    if (!(header->flags & VIRTIO_NET_HDR_F_DATA_VALID) || bytes < ETH_HLEN)
        return;
    header->flags = 0;
    memcpy(&type, frame + offsetof(struct ethhdr, h_proto), sizeof type);
    if (!(ntohs(type) == ETH_P_IP && find_v4(&found, frame, bytes)) &&
        !(ntohs(type) == ETH_P_IPV6 && find_v6(&found, frame, bytes)))
        return;
    if (found.protocol != IPPROTO_TCP && found.protocol != IPPROTO_UDP)
        return;
    offset = found.protocol == IPPROTO_TCP ? TCP_CHECKSUM_AT : UDP_CHECKSUM_AT;
    if (found.at + offset + CHECKSUM_BYTES > bytes)
        return;
    while (found.sum >> 16)
        found.sum = (found.sum & 0xffff) + (found.sum >> 16);
    frame[found.at + offset] = (uint8_t)(found.sum >> 8);
    frame[found.at + offset + 1] = (uint8_t)found.sum;
    header->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    header->csum_start = (uint16_t)found.at;
    header->csum_offset = offset;
}

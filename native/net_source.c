#include "net_source.h"

#include <linux/if_ether.h>
#include <string.h>

enum {
    SOURCE = 6, /* offsets in the Ethernet header */
    TYPE = 12,
    TYPE_BYTES = 2,
    TAG_BYTES = 4,
    MOST_TAGS = 2,
    ARP_BYTES = 28,
    ARP_SENDER_MAC = 8, /* offsets in the packet */
    ARP_SENDER_IPV4 = 14,
};

static uint16_t type_at(const uint8_t *start, uint32_t at)
{
    return (uint16_t)(start[at] << 8 | start[at + 1]);
}

static bool is_own_arp(const struct ph_net_source *own, const uint8_t *packet)
{
    /* Ethernet and IPv4, and the lengths of their addresses */
    static const uint8_t KIND[] = {0, 1, 8, 0, PH_MAC_BYTES, PH_IPV4_BYTES};
    static const uint8_t NO_IPV4[PH_IPV4_BYTES]; /* of a probe: RFC 5227 */

    if (memcmp(packet, KIND, sizeof(KIND)) != 0 ||
        memcmp(packet + ARP_SENDER_MAC, own->mac, PH_MAC_BYTES) != 0)
        return false;
    return !own->has_ipv4 || !memcmp(packet + ARP_SENDER_IPV4, own->ipv4, PH_IPV4_BYTES) ||
           !memcmp(packet + ARP_SENDER_IPV4, NO_IPV4, PH_IPV4_BYTES);
}

bool ph_net_source_is_own(const struct ph_net_source *own, const uint8_t *start, uint32_t bytes,
                          uint32_t checksum_at)
{
    uint32_t at = TYPE;

    if (!own->is_checked)
        return true;
    if (memcmp(start + SOURCE, own->mac, PH_MAC_BYTES) != 0)
        return false;
    while (type_at(start, at) == ETH_P_8021Q || type_at(start, at) == ETH_P_8021AD) {
        at += TAG_BYTES;
        if (at > TYPE + MOST_TAGS * TAG_BYTES || bytes < at + TYPE_BYTES)
            return false;
    }
    if (checksum_at && checksum_at < at + TYPE_BYTES)
        return false;
    if (type_at(start, at) != ETH_P_ARP)
        return true;
    at += TYPE_BYTES;
    return !checksum_at && bytes >= at + ARP_BYTES && is_own_arp(own, start + at);
}

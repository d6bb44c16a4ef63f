/*
 * Under which addresses a guest sends: the rules of devices/net/spoofing/source.py.
 *
 * It looks at a copy of the start of a frame, which is what is sent: the guest may change the
 * original. Must not know rings, buffers or descriptors.
 */
#ifndef PORTHOLE_NET_SOURCE_H
#define PORTHOLE_NET_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

/* The same as in source.py. */
enum {
    PH_MAC_BYTES = 6,
    PH_IPV4_BYTES = 4,
    PH_START_BYTES = 64, /* two VLAN tags and an ARP packet end before */
};

struct ph_net_source {
    uint32_t is_checked; /* 0: the guest may send under any address */
    uint32_t has_ipv4;   /* 0: it is not known */
    uint8_t mac[PH_MAC_BYTES];
    uint8_t ipv4[PH_IPV4_BYTES];
};

/*
 * Whether a frame, of which there are an Ethernet header or more bytes here, may be sent. Where its
 * header asks for a checksum the kernel writes two bytes at `checksum_at`; 0: it does not.
 */
bool ph_net_source_is_own(const struct ph_net_source *own, const uint8_t *start, uint32_t bytes,
                          uint32_t checksum_at);

#endif

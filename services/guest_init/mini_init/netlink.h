/*
 * Requests to rtnetlink (rtnetlink(7)). Each returns 0, or an errno.
 */
#ifndef MINI_INIT_NETLINK_H
#define MINI_INIT_NETLINK_H

#include <stdint.h>

struct netlink {
    int fd;
    uint32_t sequence;
};

struct ip_address {
    uint8_t bytes[16];
    uint8_t family, length, prefix; /* prefix: in bits */
};

int netlink_open(struct netlink *netlink);
/* Name an interface, which is taken down for it. */
int netlink_rename(struct netlink *netlink, unsigned index, const char *name);
int netlink_set_mtu(struct netlink *netlink, unsigned index, uint32_t mtu);
int netlink_bring_up(struct netlink *netlink, unsigned index);
int netlink_add_address(struct netlink *netlink, unsigned index, const struct ip_address *address);
/* Route everything of its family by way of a gateway. */
int netlink_add_gateway(struct netlink *netlink, unsigned index, const struct ip_address *gateway);

#endif

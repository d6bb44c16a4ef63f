/*
 * Speaks rtnetlink.
 */
#include <errno.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netlink.h"

struct request {
    struct nlmsghdr header;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
        struct rtmsg route;
    } body;
    uint8_t attributes[128];
};

int netlink_open(struct netlink *netlink)
{
    *netlink = (struct netlink){.fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)};
    return netlink->fd < 0 ? errno : 0;
}

static struct request begin(uint16_t type, uint16_t flags, size_t body_bytes)
{
    struct request request = {0};

    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.header.nlmsg_len = (uint32_t)NLMSG_LENGTH(body_bytes);
    return request;
}

/* All attributes of a request fit into it. */
static void add(struct request *request, uint16_t type, const void *data, size_t length)
{
    struct rtattr *attribute =
        (struct rtattr *)((uint8_t *)request + NLMSG_ALIGN(request->header.nlmsg_len));

    attribute->rta_type = type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(length);
    memcpy(RTA_DATA(attribute), data, length);
    request->header.nlmsg_len =
        (uint32_t)(NLMSG_ALIGN(request->header.nlmsg_len) + RTA_ALIGN(attribute->rta_len));
}

static int make(struct netlink *netlink, struct request *request)
{
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[256]; /* the request, which the kernel repeats */
    } answer;
    ssize_t got;

    request->header.nlmsg_seq = ++netlink->sequence;
    if (send(netlink->fd, request, request->header.nlmsg_len, 0) < 0)
        return errno;
    do {
        got = recv(netlink->fd, &answer, sizeof(answer), 0);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) ||
        answer.header.nlmsg_type != NLMSG_ERROR)
        return EPROTO;
    return -answer.error.error;
}

static int set_link(struct netlink *netlink, unsigned index, unsigned flags, unsigned changed)
{
    struct request request = begin(RTM_NEWLINK, 0, sizeof(struct ifinfomsg));

    request.body.link.ifi_index = (int)index;
    request.body.link.ifi_flags = flags;
    request.body.link.ifi_change = changed;
    return make(netlink, &request);
}

int netlink_rename(struct netlink *netlink, unsigned index, const char *name)
{
    struct request request = begin(RTM_NEWLINK, 0, sizeof(struct ifinfomsg));
    int error = set_link(netlink, index, 0, IFF_UP);

    request.body.link.ifi_index = (int)index;
    add(&request, IFLA_IFNAME, name, strlen(name) + 1);
    return error ? error : make(netlink, &request);
}

int netlink_set_mtu(struct netlink *netlink, unsigned index, uint32_t mtu)
{
    struct request request = begin(RTM_NEWLINK, 0, sizeof(struct ifinfomsg));

    request.body.link.ifi_index = (int)index;
    add(&request, IFLA_MTU, &mtu, sizeof(mtu));
    return make(netlink, &request);
}

int netlink_bring_up(struct netlink *netlink, unsigned index)
{
    return set_link(netlink, index, IFF_UP, IFF_UP);
}

int netlink_add_address(struct netlink *netlink, unsigned index, const struct ip_address *address)
{
    struct request request =
        begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof(struct ifaddrmsg));

    request.body.address.ifa_family = address->family;
    request.body.address.ifa_prefixlen = address->prefix;
    request.body.address.ifa_index = index;
    /* An address that the owner has chosen is nobody else's: it is used at once. */
    if (address->family == AF_INET6)
        request.body.address.ifa_flags = IFA_F_NODAD;
    add(&request, IFA_LOCAL, address->bytes, address->length);
    add(&request, IFA_ADDRESS, address->bytes, address->length);
    return make(netlink, &request);
}

int netlink_add_gateway(struct netlink *netlink, unsigned index, const struct ip_address *gateway)
{
    struct request request =
        begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof(struct rtmsg));
    uint32_t interface = index;

    request.body.route.rtm_family = gateway->family;
    request.body.route.rtm_table = RT_TABLE_MAIN;
    request.body.route.rtm_protocol = RTPROT_BOOT;
    request.body.route.rtm_scope = RT_SCOPE_UNIVERSE;
    request.body.route.rtm_type = RTN_UNICAST;
    /* A gateway need not be in the network of an address (NAT with a /32). */
    request.body.route.rtm_flags = RTNH_F_ONLINK;
    add(&request, RTA_GATEWAY, gateway->bytes, gateway->length);
    add(&request, RTA_OIF, &interface, sizeof(interface));
    return make(netlink, &request);
}

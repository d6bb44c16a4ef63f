/*
 * Configures adapters.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "netlink.h"
#include "network.h"
#include "porthole/guest/v1/guest_control.pb.h"
#include "waiting.h"

#define INTERFACES_DIR "/sys/class/net"
#define RESOLV_CONF "/etc/resolv.conf"
#define MAC_TEXT 17u
#define RESOLV_BYTES 4096u

static bool has_address(const char *interface, const char *mac)
{
    char path[PATH_BYTES], text[MAC_TEXT + 2];

    return path_join(path, INTERFACES_DIR "/", interface, "address") &&
           file_read(path, text, sizeof(text)) == (ssize_t)MAC_TEXT + 1 &&
           !strncasecmp(text, mac, MAC_TEXT);
}

/* Returns the index of the interface with this hardware address; 0: there is none. */
static unsigned find(const char *mac)
{
    DIR *interfaces = opendir(INTERFACES_DIR);
    unsigned index = 0;

    if (!interfaces || strlen(mac) != MAC_TEXT) {
        if (interfaces)
            closedir(interfaces);
        return 0;
    }
    for (struct dirent *entry = readdir(interfaces); entry && !index; entry = readdir(interfaces)) {
        if (entry->d_name[0] != '.' && has_address(entry->d_name, mac))
            index = if_nametoindex(entry->d_name);
    }
    closedir(interfaces);
    return index;
}

/* Parse "192.0.2.2/24" or "192.0.2.1"; false: it is neither. */
static bool parse(const char *text, struct ip_address *address)
{
    char host[INET6_ADDRSTRLEN];
    const char *slash = text ? strchr(text, '/') : NULL;
    size_t length = slash ? (size_t)(slash - text) : text ? strlen(text) : 0;
    unsigned long prefix;
    char *end;

    if (!text || length >= sizeof(host))
        return false;
    memcpy(host, text, length);
    host[length] = '\0';
    *address = (struct ip_address){.family = strchr(host, ':') ? AF_INET6 : AF_INET};
    address->length = address->family == AF_INET6 ? 16 : 4;
    address->prefix = (uint8_t)(8 * address->length);
    if (inet_pton(address->family, host, address->bytes) != 1)
        return false;
    if (!slash)
        return true;
    prefix = strtoul(slash + 1, &end, 10);
    if (end == slash + 1 || *end || prefix > address->prefix)
        return false;
    address->prefix = (uint8_t)prefix;
    return true;
}

static struct outcome add_addresses(struct netlink *netlink, unsigned index,
                                    const ConfigureAdapterRequest *wanted)
{
    struct ip_address address;
    int error;

    for (pb_size_t i = 0; i < wanted->addresses_count; i++) {
        error = parse(wanted->addresses[i], &address)
                    ? netlink_add_address(netlink, index, &address)
                    : EINVAL;
        if (error)
            return outcome_of(error, "address %s: %s", wanted->addresses[i], strerror(error));
    }
    for (pb_size_t i = 0; i < wanted->gateways_count; i++) {
        error = parse(wanted->gateways[i], &address) ? netlink_add_gateway(netlink, index, &address)
                                                     : EINVAL;
        if (error)
            return outcome_of(error, "gateway %s: %s", wanted->gateways[i], strerror(error));
    }
    return (struct outcome){0};
}

/* Add a line, or a word of one; returns the length then, at most `limit`. */
static size_t append(char *text, size_t length, size_t limit, const char *before, const char *word)
{
    int added = snprintf(text + length, limit - length, "%s%s", before, word);

    return added < 0 || (size_t)added >= limit - length ? limit : length + (size_t)added;
}

static struct outcome write_name_servers(const ConfigureAdapterRequest *wanted)
{
    char text[RESOLV_BYTES];
    size_t length = 0;
    int error;

    for (pb_size_t i = 0; i < wanted->nameservers_count; i++)
        length = append(text, length, sizeof(text), i ? "\nnameserver " : "nameserver ",
                        wanted->nameservers[i]);
    for (pb_size_t i = 0; i < wanted->search_domains_count; i++)
        length =
            append(text, length, sizeof(text), i ? " " : "\nsearch ", wanted->search_domains[i]);
    length = append(text, length, sizeof(text), "\n", "");
    error = length < sizeof(text) ? path_make("/etc", 0755) : E2BIG;
    if (!error)
        error = file_write(RESOLV_CONF, text, length);
    if (error)
        return outcome_of(error, RESOLV_CONF ": %s", strerror(error));
    return (struct outcome){0};
}

static struct outcome configure(struct netlink *netlink, unsigned index,
                                const ConfigureAdapterRequest *wanted)
{
    struct outcome outcome;
    int error = 0;

    if (wanted->name && *wanted->name) {
        error = strlen(wanted->name) < IFNAMSIZ ? netlink_rename(netlink, index, wanted->name)
                                                : ENAMETOOLONG;
        if (error)
            return outcome_of(error, "name %s: %s", wanted->name, strerror(error));
    }
    if (wanted->mtu)
        error = netlink_set_mtu(netlink, index, wanted->mtu);
    if (error)
        return outcome_of(error, "MTU %u: %s", (unsigned)wanted->mtu, strerror(error));
    error = netlink_bring_up(netlink, index);
    if (error)
        return outcome_of(error, "bringing it up: %s", strerror(error));
    outcome = add_addresses(netlink, index, wanted);
    if (!outcome.error && wanted->nameservers_count)
        outcome = write_name_servers(wanted);
    return outcome;
}

struct outcome configure_adapter_job(const void *request)
{
    const ConfigureAdapterRequest *wanted = request;
    const char *mac = wanted->mac_address ? wanted->mac_address : "";
    struct netlink netlink;
    struct waiting waiting;
    unsigned index;
    int error;

    waiting_begin(&waiting, wanted->wait_ms);
    do {
        index = find(mac);
    } while (!index && waiting_goes_on(&waiting));
    if (!index)
        return outcome_of(ENODEV, "no adapter has the address \"%s\"", mac);
    error = netlink_open(&netlink);
    if (error)
        return outcome_of(error, "rtnetlink: %s", strerror(error));
    return configure(&netlink, index, wanted);
}

struct outcome loopback_job(const void *nothing)
{
    struct netlink netlink;
    unsigned index = if_nametoindex("lo");

    (void)nothing;
    if (index && !netlink_open(&netlink))
        (void)netlink_bring_up(&netlink, index);
    return (struct outcome){0};
}

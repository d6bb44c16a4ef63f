/* A TAP interface of the guest, with a virtio-net header before each packet.
 *
 * Owns the interface's descriptor and which offloads its stack uses. Must not know rings.
 */
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "process.h"

#define F(bit) (1ull << (bit))
#define USO_FLAGS 0x60u /* TUN_F_USO4 and TUN_F_USO6 of linux/if_tun.h, since Linux 6.2 */

static const struct {
    uint64_t feature;
    unsigned flag;
} offloads[] = {
    {F(VIRTIO_NET_F_CSUM), TUN_F_CSUM},
    {F(VIRTIO_NET_F_HOST_TSO4), TUN_F_TSO4},
    {F(VIRTIO_NET_F_HOST_TSO6), TUN_F_TSO6},
    {F_HOST_USO, USO_FLAGS},
};

int tap_open(const char *name, uint64_t features)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), bytes = HEADER_BYTES, one = 1;
    unsigned flags = 0;

    if (features & F(VIRTIO_NET_F_MQ))
        request.ifr_flags |= IFF_MULTI_QUEUE;
    if (strlen(name) >= sizeof request.ifr_name)
        die("'%s' is too long for the name of an interface", name);
    strcpy(request.ifr_name, name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0)
        die("cannot open the interface %s: %m", name);
    for (unsigned i = 0; i < sizeof offloads / sizeof *offloads; i++)
        if (features & offloads[i].feature)
            flags |= offloads[i].flag;
    if (ioctl(fd, TUNSETVNETHDRSZ, &bytes) < 0 || ioctl(fd, TUNSETVNETLE, &one) < 0 ||
        ioctl(fd, TUNSETOFFLOAD, (unsigned long)flags) < 0)
        die("cannot set the interface %s up: %m", name);
    return fd;
}

static void await(int fd, short events)
{
    struct pollfd ready = {.fd = fd, .events = events};

    if (poll(&ready, 1, -1) < 0 && errno != EINTR)
        die("cannot wait for the interface: %m");
}

size_t tap_read(int fd, uint8_t *packet, bool polling)
{
    for (;;) {
        ssize_t bytes = read(fd, packet, MAX_PACKET_BYTES);

        if (bytes >= (ssize_t)HEADER_BYTES)
            return (size_t)bytes;
        if (bytes >= 0 || (errno != EAGAIN && errno != EINTR))
            die("%zd bytes from the interface: %m", bytes);
        if (polling)
            sched_yield();
        else
            await(fd, POLLIN);
    }
}

bool tap_write(int fd, const struct iovec *parts, unsigned count)
{
    ssize_t bytes;

    while ((bytes = writev(fd, parts, (int)count)) < 0 && (errno == EAGAIN || errno == EINTR))
        await(fd, POLLOUT);
    return bytes >= 0;
}

/* A TAP interface of the guest: its network stack's end of an adapter. */
#ifndef FRONT_END_TAP_H
#define FRONT_END_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define HEADER_BYTES 12u /* struct virtio_net_hdr_v1 */
#define MAX_PACKET_BYTES (HEADER_BYTES + 65550u)

/* The same as in linux/virtio_net.h, which has them since Linux 6.2. */
#define F_GUEST_USO4 (1ull << 54)
#define F_GUEST_USO6 (1ull << 55)
#define F_HOST_USO (1ull << 56)

/* Open a queue of an interface that exists, and let its stack leave to the device what was
 * negotiated. An interface has several queues if several pairs were (VIRTIO_NET_F_MQ). */
int tap_open(const char *name, uint64_t features);
/* Take one packet, header first; waits for it, without sleep if `polling`. */
size_t tap_read(int fd, uint8_t *packet, bool polling);
/* Give the stack one packet; false when it is dropped. */
bool tap_write(int fd, const struct iovec *parts, unsigned count);

#endif

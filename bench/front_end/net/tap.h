/* A TAP interface of the guest: its network stack's end of an adapter. */
#ifndef FRONT_END_TAP_H
#define FRONT_END_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define HEADER_BYTES 12u /* struct virtio_net_hdr_v1 */
#define MAX_PACKET_BYTES (HEADER_BYTES + 65550u)

/* Open an interface that exists, and let its stack leave to the device what was negotiated. */
int tap_open(const char *name, uint64_t features);
/* Take one packet, header first; waits for it. */
size_t tap_read(int fd, uint8_t *packet);
/* Give the stack one packet; false when it is dropped. */
bool tap_write(int fd, const struct iovec *parts, unsigned count);

#endif

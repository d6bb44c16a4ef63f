/* Checksums of packets that the device has verified, or has left out. */
#ifndef FRONT_END_CHECKSUM_H
#define FRONT_END_CHECKSUM_H

#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdint.h>

/* Turn a header that says DATA_VALID into one that says NEEDS_CSUM, for a TAP, which does not look
 * at the former. `bytes` are those of the frame that lie in one piece. */
void checksum_vouch(struct virtio_net_hdr_v1 *header, uint8_t *frame, size_t bytes);

#endif

/*
 * A guest that changes its ring, and the memory of its buffers, as it likes and at any time.
 */
#ifndef PORTHOLE_FUZZ_GUEST_RING_H
#define PORTHOLE_FUZZ_GUEST_RING_H

#include "guest_memory.h"

enum guest_act {
    GUEST_OFFERS,    /* heads, and the index of those that are available */
    GUEST_DESCRIBES, /* a buffer, often one that fits */
    GUEST_POKES,     /* a byte of anything but the used ring */
};

void guest_act(struct input *input, enum guest_act act, uint32_t ring_size);
uint16_t guest_avail16(size_t index); /* of the available ring, in words from its start */

#endif

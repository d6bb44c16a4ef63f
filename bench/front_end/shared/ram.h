/* Guest memory: a memfd with a pool in it.
 *
 * Sizes are in bytes. Places in guest memory are offsets into the memfd (`at_`); the guest-physical
 * address is RAM_GPA more.
 */
#ifndef FRONT_END_RAM_H
#define FRONT_END_RAM_H

#include <stdint.h>

#define PAGE_BYTES 4096u
#define SLOT_BYTES 2048u      /* of a swiotlb: what one mapping takes at least */
#define RAM_GPA 0x40000000ull /* not 0: an address is never mistaken for an offset */
#define POOL_AT (16ull << 20) /* the pool's place in guest memory */

struct ram {
    int fd;
    uint8_t *base;
    uint64_t bytes;
    uint64_t pool_next, pool_end; /* what is left of the pool */
};

void ram_make(struct ram *ram, uint64_t pool_bytes);
void ram_free(struct ram *ram);
uint64_t ram_take(struct ram *ram, uint64_t bytes, uint64_t align);
void ram_touch(struct ram *ram, uint64_t at, uint64_t bytes);

#endif

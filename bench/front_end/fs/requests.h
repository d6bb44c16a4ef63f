/* FUSE requests over a ring. */
#ifndef FRONT_END_REQUESTS_H
#define FRONT_END_REQUESTS_H

#include <stdint.h>

#include "ram.h"
#include "ring.h"

struct slot;

struct request {
    struct slot *slot; /* the slot that waits for the reply; NULL: none */
    uint64_t at_in_header, at_in_args, at_out_header, at_out_args;
    const uint64_t *pages; /* data buffers of this request, when it has data */
    uint32_t page_bytes;   /* of each but the last */
    uint32_t opcode, data_bytes;
    uint64_t unique, offset; /* offset: in the file */
};

struct reply {
    int error;
    uint32_t bytes;
    const void *args;
};

enum direction { NO_DATA, DATA_IN, DATA_OUT };
#define NO_REPLY UINT32_MAX

void request_make(struct request *request, struct ram *ram, uint64_t number);
void *request_args(const struct request *request, const struct ram *ram);
void request_send(struct ring *ring, struct request *request, uint32_t opcode, uint64_t node,
                  uint32_t in_args, uint32_t out_args, enum direction direction);
struct reply request_reply(const struct request *request, const struct ram *ram, uint32_t written);

#endif

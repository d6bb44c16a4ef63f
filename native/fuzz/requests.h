/*
 * FUSE requests to fuzz with: made of their parts, so that many are lawful, or taken as they come.
 *
 * Must not know who serves them.
 */
#ifndef PORTHOLE_FUZZ_REQUESTS_H
#define PORTHOLE_FUZZ_REQUESTS_H

#include <linux/fuse.h>

#include "fuzz.h"

enum {
    REQUEST_MAX_BYTES = 4096 + 512,
    REQUEST_AS_IT_COMES = 1, /* of the flags */
};

/* Make a request; returns its length. */
size_t request_make(struct input *input, uint8_t flags, uint8_t *bytes);
/* Check that what was written is a reply to this request. */
void request_check_reply(const struct fuse_in_header *header, const uint8_t *replied,
                         int64_t written, uint64_t room);

#endif

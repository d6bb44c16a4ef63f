/*
 * Frames on the channel: "PHI1", a length, a message. protos/porthole/guest/v1/mini_init.proto has
 * the format. Must not know descriptors or messages.
 */
#ifndef MINI_INIT_FRAMES_H
#define MINI_INIT_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER_BYTES 8u
#define FRAME_MESSAGE_LIMIT 65536u
#define FRAME_READER_BYTES (2 * (FRAME_HEADER_BYTES + FRAME_MESSAGE_LIMIT))

/* What was received and not taken yet: bytes[start, end). All zeros: nothing. */
struct frame_reader {
    size_t start, end;
    uint64_t skipped;  /* bytes that belong to no frame */
    uint32_t too_long; /* the latest length over the limit, until its reader sets it to 0 */
    uint8_t bytes[FRAME_READER_BYTES];
};

/* Where further bytes are to be received, at most `*room`, which is never 0 after frame_take has
 * returned false. Frames that were taken are not valid any more. */
uint8_t *frame_room(struct frame_reader *reader, size_t *room);
/* Say that bytes were received there. */
void frame_received(struct frame_reader *reader, size_t bytes);
/* Take the next whole frame; false: more bytes are needed. */
bool frame_take(struct frame_reader *reader, const uint8_t **message, uint32_t *length);

/* Write the header of a message of this length, 1 to FRAME_MESSAGE_LIMIT bytes. */
void frame_write_header(uint8_t *header, uint32_t length);

#endif

/*
 * Finds frames in the bytes of the channel, and skips what is none.
 */
#include <string.h>

#include "frames.h"

static const uint8_t magic[4] = {'P', 'H', 'I', '1'};

uint8_t *frame_room(struct frame_reader *reader, size_t *room)
{
    if (reader->start) {
        memmove(reader->bytes, reader->bytes + reader->start, reader->end - reader->start);
        reader->end -= reader->start;
        reader->start = 0;
    }
    *room = sizeof(reader->bytes) - reader->end;
    return reader->bytes + reader->end;
}

void frame_received(struct frame_reader *reader, size_t bytes)
{
    reader->end += bytes;
}

/* The length of the frame that begins here; 0: no frame begins here. */
static uint32_t length_at(struct frame_reader *reader, const uint8_t *header)
{
    uint32_t length;

    if (memcmp(header, magic, sizeof(magic)) != 0)
        return 0;
    length = (uint32_t)header[4] | (uint32_t)header[5] << 8 | (uint32_t)header[6] << 16 |
             (uint32_t)header[7] << 24;
    if (length <= FRAME_MESSAGE_LIMIT)
        return length;
    reader->too_long = length;
    return 0;
}

/* Skip to the next byte that may begin a header, at least one byte. */
static void skip(struct frame_reader *reader)
{
    const uint8_t *from = reader->bytes + reader->start + 1;
    const uint8_t *next = memchr(from, magic[0], reader->end - reader->start - 1);
    size_t start = next ? (size_t)(next - reader->bytes) : reader->end;

    reader->skipped += start - reader->start;
    reader->start = start;
}

bool frame_take(struct frame_reader *reader, const uint8_t **message, uint32_t *length)
{
    while (reader->end - reader->start >= FRAME_HEADER_BYTES) {
        const uint8_t *header = reader->bytes + reader->start;

        *length = length_at(reader, header);
        if (!*length) {
            skip(reader);
            continue;
        }
        if (reader->end - reader->start < FRAME_HEADER_BYTES + (size_t)*length)
            return false;
        *message = header + FRAME_HEADER_BYTES;
        reader->start += FRAME_HEADER_BYTES + (size_t)*length;
        return true;
    }
    return false;
}

void frame_write_header(uint8_t *header, uint32_t length)
{
    memcpy(header, magic, sizeof(magic));
    for (unsigned i = 0; i < 4; i++)
        header[4 + i] = (uint8_t)(length >> (8 * i));
}

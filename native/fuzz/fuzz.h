/*
 * What the fuzz targets share: taking an input apart, and saying which rule was broken.
 *
 * An input that ends early reads as zeros, so every input is a valid one. Must not know what is
 * fuzzed.
 */
#ifndef PORTHOLE_FUZZ_H
#define PORTHOLE_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
    const uint8_t *data;
    size_t size;
};

/* End the program unless this holds: libFuzzer keeps the input then. */
#define HOLDS(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static inline void take_bytes(struct input *input, void *to, size_t size)
{
    size_t part = size < input->size ? size : input->size;

    memset(to, 0, size);
    if (part)
        memcpy(to, input->data, part);
    input->data += part;
    input->size -= part;
}

static inline uint8_t take8(struct input *input)
{
    uint8_t value;

    take_bytes(input, &value, sizeof(value));
    return value;
}

static inline uint16_t take16(struct input *input)
{
    uint16_t value;

    take_bytes(input, &value, sizeof(value));
    return value;
}

static inline uint32_t take32(struct input *input)
{
    uint32_t value;

    take_bytes(input, &value, sizeof(value));
    return value;
}

#endif

#include "guest_memory.h"

#include <sys/mman.h>

#include "poison.h"

enum {
    PAGE_BYTES = 4096,
    PART_PAGES = 4,
    PART_BYTES = PART_PAGES * PAGE_BYTES,
    DESC_BYTES = 16,
};

struct part parts[MEMORY_PARTS];
struct ph_span spans[MEMORY_SPANS];

#ifndef MUTATING
static uint8_t before[MEMORY_PARTS][PART_BYTES];

void memory_remember(void)
{
    for (int part = 0; part < MEMORY_PARTS; part++)
        memcpy(before[part], parts[part].start, parts[part].size);
}

void memory_check(bool used_too)
{
    for (int part = 0; part < MEMORY_PARTS; part++)
        if (part != MEMORY_USED || used_too)
            HOLDS(!memcmp(before[part], parts[part].start, parts[part].size));
}
#endif

void memory_make(void)
{
    for (int i = 0; i < MEMORY_PARTS; i++) {
        uint8_t *whole =
            mmap(NULL, PART_BYTES + 2 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        HOLDS(whole != MAP_FAILED);
        parts[i].pages = whole + PAGE_BYTES;
        HOLDS(!mprotect(parts[i].pages, PART_BYTES, PROT_READ | PROT_WRITE));
    }
}

static void place(struct part *part, size_t size, size_t align)
{
    part->size = size;
    part->start = part->pages + (PART_BYTES - size) / align * align;
    ASAN_UNPOISON_MEMORY_REGION(part->pages, PART_BYTES);
    ASAN_POISON_MEMORY_REGION(part->pages, (size_t)(part->start - part->pages));
    ASAN_POISON_MEMORY_REGION(part->start + size,
                              (size_t)(part->pages + PART_BYTES - part->start) - size);
}

void memory_lay_out(struct input *input, uint32_t size)
{
    place(&parts[MEMORY_DESC], DESC_BYTES * size, 16);
    place(&parts[MEMORY_AVAIL], 6 + 2 * size, 2);
    place(&parts[MEMORY_USED], 6 + 8 * size, 4);
    for (int i = 0; i < MEMORY_SPANS; i++) {
        struct part *part = &parts[MEMORY_SPAN + i];

        place(part, 1 + take16(input) % PART_BYTES, 1);
        /* The last span ends with the last address. */
        spans[i] = (struct ph_span){
            .gpa = i == MEMORY_SPANS - 1 ? -(uint64_t)part->size : 0x1000u + 0x10000u * (uint64_t)i,
            .size_bytes = part->size,
            .address = part->start,
        };
    }
    take_bytes(input, parts[MEMORY_DESC].start, parts[MEMORY_DESC].size);
    take_bytes(input, parts[MEMORY_AVAIL].start, parts[MEMORY_AVAIL].size);
    memset(parts[MEMORY_USED].start, 0, parts[MEMORY_USED].size);
    for (int i = MEMORY_SPAN; i < MEMORY_PARTS; i++) {
        uint8_t length = take8(input);

        memset(parts[i].start, 0, parts[i].size);
        take_bytes(input, parts[i].start, length < parts[i].size ? length : parts[i].size);
    }
}

static bool is_in_a_span(uint32_t span_count, const struct iovec *piece)
{
    const uint8_t *start = piece->iov_base;

    for (uint32_t i = 0; i < span_count; i++) {
        if (start >= spans[i].address && piece->iov_len <= spans[i].size_bytes &&
            (size_t)(start - spans[i].address) <= spans[i].size_bytes - piece->iov_len)
            return true;
    }
    return false;
}

void memory_check_pieces(uint32_t span_count, const struct iovec *pieces, uint32_t count,
                         uint64_t bytes)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < count; i++) {
        HOLDS(pieces[i].iov_len && is_in_a_span(span_count, &pieces[i]));
        HOLDS(!__asan_region_is_poisoned(pieces[i].iov_base, pieces[i].iov_len));
        sum += pieces[i].iov_len;
    }
    HOLDS(sum == bytes);
}

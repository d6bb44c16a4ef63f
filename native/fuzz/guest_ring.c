#include "guest_ring.h"

enum { DESC_BYTES = 16 };

uint16_t guest_avail16(size_t index)
{
    uint16_t value;

    memcpy(&value, parts[MEMORY_AVAIL].start + 2 * index, sizeof(value));
    return value;
}

void guest_act(struct input *input, enum guest_act act, uint32_t size)
{
    if (act == GUEST_OFFERS) {
        uint16_t idx = guest_avail16(1), count = take8(input);

        for (uint16_t i = 0; i < count % 8; i++) {
            uint16_t head = take8(input);

            memcpy(parts[MEMORY_AVAIL].start + 4 + 2 * ((uint16_t)(idx + i) % size), &head,
                   sizeof(head));
        }
        idx = (uint16_t)(idx + count);
        memcpy(parts[MEMORY_AVAIL].start + 2, &idx, sizeof(idx));
    } else if (act == GUEST_DESCRIBES) {
        /* addr and len are short, so that they often fit. */
        uint32_t slot = take8(input) % size, span = take8(input) % MEMORY_SPANS;
        uint64_t addr = spans[span].gpa + take16(input);
        uint32_t len = take16(input);
        uint16_t flags = take8(input), next = take8(input);
        uint8_t *to = parts[MEMORY_DESC].start + DESC_BYTES * slot;

        memcpy(to, &addr, 8);
        memcpy(to + 8, &len, 4);
        memcpy(to + 12, &flags, 2);
        memcpy(to + 14, &next, 2);
    } else if (act == GUEST_POKES) {
        struct part *part = &parts[take8(input) % MEMORY_PARTS];
        size_t at = take16(input);
        uint8_t value = take8(input);

        if (part != &parts[MEMORY_USED])
            part->start[at % part->size] = value;
    }
}

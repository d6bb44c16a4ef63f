#include "guest.h"

#include "mutator.h"
#include "requests.h"

enum {
    WRITE_BYTES = 4096,
    TABLE_BYTES = GUEST_CHAIN_DESCS * sizeof(struct vring_desc),
    AREA_BYTES = 2 * 4096 + WRITE_BYTES, /* of a chain: table, request and reply */
    RAM_BYTES = GUEST_CHAINS * AREA_BYTES,
    MUTATED_BYTES = TABLE_BYTES + 64, /* of each area: the part that a device takes decisions by */
    RAM_GPA = 0x10000,
    INDIRECT = 64, /* of a request's flags, beside those of request_make */
};

void guest_make(struct guest *guest)
{
    memset(guest, 0, sizeof(*guest));
    HOLDS((guest->desc = aligned_alloc(16, GUEST_DESC_BYTES)));
    HOLDS((guest->avail = malloc(GUEST_AVAIL_BYTES)));
    HOLDS((guest->used = malloc(GUEST_USED_BYTES)));
    HOLDS((guest->ram = calloc(1, RAM_BYTES)));
    guest->span = (struct ph_span){RAM_GPA, RAM_BYTES, guest->ram};
    guest_reset(guest);
}

void guest_free(struct guest *guest)
{
    free(guest->desc);
    free(guest->avail);
    free(guest->used);
    free(guest->ram);
}

void guest_reset(struct guest *guest)
{
    memset(guest->desc, 0, GUEST_DESC_BYTES);
    memset(guest->avail, 0, GUEST_AVAIL_BYTES);
    memset(guest->used, 0, GUEST_USED_BYTES);
    memset(guest->chains, 0, sizeof(guest->chains));
    guest->seen_used = 0;
    guest->is_hostile = IS_MUTATING;
}

static struct vring_desc describe(uint64_t offset, uint32_t length, uint16_t flags, uint16_t next)
{
    return (struct vring_desc){RAM_GPA + offset, length, flags, next};
}

/* Describe a request by one or two descriptors, and its room by none, one or two. */
static void link_chain(struct guest *guest, uint32_t chain, uint32_t length, uint32_t room,
                       uint8_t flags, uint8_t cut)
{
    uint64_t area = (uint64_t)chain * AREA_BYTES, reads = area + TABLE_BYTES,
             writes = area + AREA_BYTES - WRITE_BYTES;
    uint16_t first = (uint16_t)(flags & INDIRECT ? 0 : chain * GUEST_CHAIN_DESCS), count = 0;
    struct vring_desc descs[GUEST_CHAIN_DESCS];
    uint32_t part = length > 1 ? 1 + cut % (length - 1) : length;

    memset(descs, 0, sizeof(descs));
    descs[count++] = describe(reads, part, 0, 0);
    if (part < length)
        descs[count++] = describe(reads + part, length - part, 0, 0);
    part = room > 1 && flags & 2 ? 1 + cut % (room - 1) : room;
    if (part)
        descs[count++] = describe(writes, part, VRING_DESC_F_WRITE, 0);
    if (part < room)
        descs[count++] = describe(writes + part, room - part, VRING_DESC_F_WRITE, 0);
    for (uint16_t i = 0; i + 1 < count; i++) {
        descs[i].flags |= VRING_DESC_F_NEXT;
        descs[i].next = (uint16_t)(first + i + 1);
    }
    if (flags & INDIRECT) {
        memcpy(guest->ram + area, descs, sizeof(descs));
        descs[0] = describe(area, (uint32_t)(count * sizeof(descs[0])), VRING_DESC_F_INDIRECT, 0);
        count = 1;
    }
    memcpy(&guest->desc[chain * GUEST_CHAIN_DESCS], descs, count * sizeof(descs[0]));
}

void guest_ask(struct guest *guest, struct input *input)
{
    static uint8_t request[REQUEST_MAX_BYTES];
    uint8_t flags = take8(input), slot = take8(input), cut = take8(input);
    uint32_t chain = 0, length, room;
    struct guest_chain *asked;

    while (chain < GUEST_CHAINS && guest->chains[chain].is_waiting)
        chain++;
    if (chain == GUEST_CHAINS)
        return;
    memset(request, 0, sizeof(struct fuse_in_header));
    length = (uint32_t)request_make(input, flags, request);
    room = (flags & 32 ? take16(input) : take8(input) * 2u) % (WRITE_BYTES + 1);
    if (!length)
        return;
    asked = &guest->chains[chain];
    *asked = (struct guest_chain){.room = room, .is_waiting = true};
    asked->has_header = length >= sizeof(asked->header);
    memcpy(&asked->header, request, sizeof(asked->header));
    if (!(flags & REQUEST_AS_IT_COMES)) {
        asked->header.nodeid |= (uint64_t)(slot % GUEST_SLOTS) << PH_SLOT_SHIFT;
        memcpy(request, &asked->header, sizeof(asked->header));
    }
    memcpy(guest->ram + (size_t)chain * AREA_BYTES + TABLE_BYTES, request, length);
    link_chain(guest, chain, length, room, flags, cut);
    guest->avail[2 + guest->avail[1] % GUEST_RING_SIZE] = (uint16_t)(chain * GUEST_CHAIN_DESCS);
    guest->avail[1]++;
}

void guest_poke(struct guest *guest, struct input *input)
{
    uint8_t part = take8(input), value = take8(input);
    size_t at = take16(input);

    guest->is_hostile = true;
    if (part % 3 == 0)
        ((uint8_t *)guest->desc)[at % GUEST_DESC_BYTES] = value;
    else if (part % 3 == 1)
        ((uint8_t *)guest->avail)[at % GUEST_AVAIL_BYTES] = value;
    else
        guest->ram[at % RAM_BYTES] = value;
}

void guest_begin_mutating(const struct guest *guest)
{
    struct target targets[GUEST_CHAINS];

    for (size_t chain = 0; chain < GUEST_CHAINS; chain++)
        targets[chain] = (struct target){guest->ram + chain * AREA_BYTES, MUTATED_BYTES};
    mutator_begin(targets, GUEST_CHAINS, guest->avail[1] + 1u);
}

void guest_expect_python(struct guest *guest, uint16_t next_avail)
{
    uint16_t head = guest->avail[2 + next_avail % GUEST_RING_SIZE];

    if (!guest->is_hostile)
        guest->chains[head / GUEST_CHAIN_DESCS].is_for_python = true;
}

static void check_served(const struct guest *guest, uint32_t chain, uint32_t written,
                         const bool is_mounted[GUEST_SLOTS])
{
    const struct guest_chain *asked = &guest->chains[chain];
    uint64_t slot = asked->header.nodeid >> PH_SLOT_SHIFT;

    if (asked->is_for_python) {
        HOLDS(!written);
        return;
    }
    HOLDS(asked->has_header && slot < GUEST_SLOTS && is_mounted[slot]);
    request_check_reply(&asked->header, guest->ram + (size_t)(chain + 1) * AREA_BYTES - WRITE_BYTES,
                        written, asked->room);
}

void guest_collect(struct guest *guest, const bool is_mounted[GUEST_SLOTS])
{
    uint16_t idx;

    memcpy(&idx, guest->used + 2, sizeof(idx));
    HOLDS((uint16_t)(idx - guest->seen_used) <= GUEST_RING_SIZE);
    for (; guest->seen_used != idx; guest->seen_used++) {
        uint32_t element[2], chain;

        memcpy(element, guest->used + 4 + 8 * (guest->seen_used % GUEST_RING_SIZE),
               sizeof(element));
        HOLDS(element[0] < GUEST_RING_SIZE);
        if (guest->is_hostile)
            continue;
        chain = element[0] / GUEST_CHAIN_DESCS;
        HOLDS(element[0] % GUEST_CHAIN_DESCS == 0 && guest->chains[chain].is_waiting);
        check_served(guest, chain, element[1], is_mounted);
        guest->chains[chain].is_waiting = false;
    }
    HOLDS(guest->is_hostile || guest->seen_used == guest->avail[1]);
}

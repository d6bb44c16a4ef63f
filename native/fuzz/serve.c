/*
 * Fuzz target: the loop of a virtio-fs queue, native/serve.c, with everything below it.
 *
 * The input says what guest and owner do in turn: the guest puts requests for any share of the
 * device into its ring, the owner adds and removes shares, has the ring served, and takes it away.
 * What the loop leaves is taken as Python takes it.
 */
#include "../serve.h"

#include <linux/fuse.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <sys/eventfd.h>

#include "fuzz.h"
#include "request.h"
#include "share.h"

enum {
    MAX_STEPS = 64,
    SLOTS = 12, /* more than a queue holds */
    CHAINS = 16,
    CHAIN_DESCS = 4, /* two to read, two to write */
    SIZE = CHAINS * CHAIN_DESCS,
    WRITE_BYTES = 4096,
    TABLE_BYTES = CHAIN_DESCS * sizeof(struct vring_desc),
    AREA_BYTES = 2 * 4096 + WRITE_BYTES, /* of a chain: table, request and reply */
    RAM_GPA = 0x10000,
    INDIRECT = 64, /* of a request's flags, beside those of request_make */
    KEPT = 16,     /* of an act's flags */
};

enum step { REQUEST, SERVE, MOUNT, UNMOUNT, STOP, SET_CALL, POKE, KICK, STEPS };

/* A chain as the guest made it. */
struct asked {
    struct fuse_in_header header; /* zeros: the request is shorter */
    uint64_t room;
    bool has_header, is_waiting, is_for_python;
};

/* What the input says the owner is to do with a share, or with the ring. */
struct act {
    enum step step;
    uint8_t slot, flags;
};

/* Of one input. */
static struct {
    /* Each is memory of its own, with no more room than it needs. */
    struct vring_desc *desc;
    uint16_t *avail;
    uint8_t *used;
    uint8_t *ram;
    struct ph_span span;
    struct ph_counters counters;
    struct ph_ring_setup setup;
    struct ph_ring *ring;
    struct ph_mounts *mounts;
    bool is_mounted[SLOTS];
    struct ph_mount *kept[SLOTS]; /* shares that are added again and again */
    struct asked chains[CHAINS];
    uint16_t seen_used;
    bool is_hostile; /* the ring is not what the guest has made */
} now;

static struct ph_worker *worker;
static int kick_fd, call_fd, stop_fd, wake_fd;

static void set_mount(const struct act *act)
{
    uint64_t slot = act->slot % SLOTS;
    struct ph_rules rules = {
        .ino_mask = slot << PH_SLOT_SHIFT,
        .uid = PH_KEEP_ID,
        .gid = PH_KEEP_ID,
        .keep_dir = 0177777,
        .keep_file = 0177777,
        .valid_s = 1,
        .read_only = act->flags & 1,
        .to_python = act->flags >> 1 & 1,
        .writeback = act->flags >> 2 & 1,
    };
    bool is_kept = act->flags & KEPT;
    struct ph_mount *mount = NULL;

    if (act->step == MOUNT && is_kept)
        mount = now.kept[slot];
    if (act->step == MOUNT && !mount)
        mount = share_open_at(slot << PH_SLOT_SHIFT | FUSE_ROOT_ID, &rules, act->flags >> 3 & 1);
    HOLDS(ph_mounts_put(now.mounts, slot, mount));
    if (mount && is_kept)
        now.kept[slot] = mount;
    else if (mount)
        ph_mount_release(mount);
    now.is_mounted[slot] = mount;
}

static void perform(const struct act *act)
{
    switch (act->step) {
    case MOUNT:
    case UNMOUNT:
        set_mount(act);
        break;
    case STOP:
        ph_ring_stop(now.ring);
        ph_ring_close(now.ring);
        break;
    case SET_CALL:
        ph_ring_set_call(now.ring, act->flags & 1 ? call_fd : -1);
        break;
    default:
        break;
    }
}

static struct act take_act(struct input *input, enum step step)
{
    struct act act = {.step = step};

    act.slot = take8(input);
    act.flags = take8(input);
    return act;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    share_mount();
    HOLDS((worker = ph_worker_new()));
    kick_fd = eventfd(0, EFD_NONBLOCK);
    call_fd = eventfd(0, EFD_NONBLOCK);
    stop_fd = eventfd(0, EFD_NONBLOCK);
    wake_fd = eventfd(1, EFD_NONBLOCK); /* the loop ends when it has nothing to do */
    return 0;
}

/* Serve the ring from where it was left; as when a queue's thread is begun. */
static void attach(struct ph_ring_state state)
{
    HOLDS((now.ring = ph_ring_new(&now.setup)));
    *ph_ring_state(now.ring) = state;
    ph_ring_set_wake(now.ring, wake_fd);
}

static void detach(void)
{
    struct ph_ring_state state = *ph_ring_state(now.ring);

    ph_ring_free(now.ring);
    attach(state);
}

/* The guest begins anew, as its driver does after a fault. */
static void reset(void)
{
    if (now.ring)
        ph_ring_free(now.ring);
    memset(now.desc, 0, SIZE * sizeof(*now.desc));
    memset(now.avail, 0, 6 + 2 * SIZE);
    memset(now.used, 0, 6 + 8 * SIZE);
    memset(now.chains, 0, sizeof(now.chains));
    now.seen_used = 0;
    now.is_hostile = false;
    attach((struct ph_ring_state){0});
}

static struct vring_desc describe(uint64_t offset, uint32_t length, uint16_t flags, uint16_t next)
{
    return (struct vring_desc){RAM_GPA + offset, length, flags, next};
}

/* Describe a request in one descriptor or two, its room likewise. */
static void link_chain(uint32_t chain, uint32_t length, uint32_t room, uint8_t flags, uint8_t cut)
{
    uint64_t area = (uint64_t)chain * AREA_BYTES, reads = area + TABLE_BYTES,
             writes = area + AREA_BYTES - WRITE_BYTES;
    uint16_t first = (uint16_t)(flags & INDIRECT ? 0 : chain * CHAIN_DESCS), count = 0;
    struct vring_desc descs[CHAIN_DESCS];
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
        memcpy(now.ram + area, descs, sizeof(descs));
        descs[0] = describe(area, (uint32_t)(count * sizeof(descs[0])), VRING_DESC_F_INDIRECT, 0);
        count = 1;
    }
    memcpy(&now.desc[chain * CHAIN_DESCS], descs, count * sizeof(descs[0]));
}

static void ask(struct input *input)
{
    static uint8_t request[REQUEST_MAX_BYTES];
    uint8_t flags = take8(input), slot = take8(input), cut = take8(input);
    uint32_t chain = 0, length, room;
    struct asked *asked;

    while (chain < CHAINS && now.chains[chain].is_waiting)
        chain++;
    if (chain == CHAINS)
        return;
    memset(request, 0, sizeof(struct fuse_in_header));
    length = (uint32_t)request_make(input, flags, request);
    room = (flags & 32 ? take16(input) : take8(input) * 2u) % (WRITE_BYTES + 1);
    if (!length)
        return;
    asked = &now.chains[chain];
    *asked = (struct asked){.room = room, .is_waiting = true};
    asked->has_header = length >= sizeof(asked->header);
    memcpy(&asked->header, request, sizeof(asked->header));
    if (!(flags & REQUEST_AS_IT_COMES)) {
        asked->header.nodeid |= (uint64_t)(slot % SLOTS) << PH_SLOT_SHIFT;
        memcpy(request, &asked->header, sizeof(asked->header));
    }
    memcpy(now.ram + (size_t)chain * AREA_BYTES + TABLE_BYTES, request, length);
    link_chain(chain, length, room, flags, cut);
    now.avail[2 + now.avail[1] % SIZE] = (uint16_t)(chain * CHAIN_DESCS);
    now.avail[1]++;
}

static void check_served(const struct asked *asked, uint32_t chain, uint32_t written)
{
    const uint8_t *replied = now.ram + (size_t)(chain + 1) * AREA_BYTES - WRITE_BYTES;

    if (asked->is_for_python) {
        HOLDS(!written);
        return;
    }
    HOLDS(asked->has_header);
    HOLDS(asked->header.nodeid >> PH_SLOT_SHIFT < SLOTS);
    HOLDS(now.is_mounted[asked->header.nodeid >> PH_SLOT_SHIFT]);
    request_check_reply(&asked->header, replied, written, asked->room);
}

/* As a driver takes what was given back. */
static void collect(void)
{
    uint16_t idx;

    memcpy(&idx, now.used + 2, sizeof(idx));
    HOLDS((uint16_t)(idx - now.seen_used) <= SIZE);
    for (; now.seen_used != idx; now.seen_used++) {
        uint32_t element[2], chain;

        memcpy(element, now.used + 4 + 8 * (now.seen_used % SIZE), sizeof(element));
        HOLDS(element[0] < SIZE);
        if (now.is_hostile)
            continue;
        chain = element[0] / CHAIN_DESCS;
        HOLDS(element[0] % CHAIN_DESCS == 0 && now.chains[chain].is_waiting);
        check_served(&now.chains[chain], chain, element[1]);
        now.chains[chain].is_waiting = false;
    }
}

/* Give the next chain back without a word, as Python would after it has served it. */
static bool act_as_python(void)
{
    struct ph_chain chain;
    uint16_t head;

    if (ph_ring_look(now.ring) != PH_LOOK_CHAIN) {
        HOLDS(now.is_hostile);
        return false;
    }
    head = now.avail[2 + ph_ring_state(now.ring)->next_avail % SIZE];
    if (!ph_ring_take(now.ring, &chain)) {
        HOLDS(now.is_hostile);
        return false;
    }
    if (!now.is_hostile)
        now.chains[head / CHAIN_DESCS].is_for_python = true;
    ph_ring_push(now.ring, 0);
    return true;
}

static void serve(void)
{
    enum ph_outcome outcome;

    do {
        outcome = (enum ph_outcome)ph_serve(now.ring, worker, now.mounts);
        HOLDS(outcome == PH_OUTCOME_PYTHON || outcome == PH_OUTCOME_WOKEN);
        if (outcome == PH_OUTCOME_PYTHON && !act_as_python()) {
            reset();
            return;
        }
    } while (outcome == PH_OUTCOME_PYTHON);
    collect();
    HOLDS(now.is_hostile || now.seen_used == now.avail[1]);
}

/* The ring is taken away, and what comes too late does not touch it. */
static void stop(void)
{
    static uint8_t before[6 + 8 * SIZE];

    perform(&(struct act){.step = STOP});
    memcpy(before, now.used, sizeof(before));
    HOLDS(ph_serve(now.ring, worker, now.mounts) == PH_OUTCOME_STOPPED);
    ph_ring_push(now.ring, 0);
    ph_ring_notify(now.ring);
    HOLDS(!memcmp(before, now.used, sizeof(before)));
    detach();
}

static void poke(struct input *input)
{
    uint8_t part = take8(input), value = take8(input);
    size_t at = take16(input);

    now.is_hostile = true;
    if (part % 3 == 0)
        ((uint8_t *)now.desc)[at % (SIZE * sizeof(*now.desc))] = value;
    else if (part % 3 == 1)
        ((uint8_t *)now.avail)[at % (6 + 2 * SIZE)] = value;
    else
        now.ram[at % (CHAINS * AREA_BYTES)] = value;
}

static void take_step(struct input *input)
{
    enum step step = take8(input) % STEPS;
    struct act act;

    switch (step) {
    case REQUEST:
        ask(input);
        break;
    case SERVE:
        serve();
        break;
    case MOUNT:
    case UNMOUNT:
    case SET_CALL:
        act = take_act(input, step);
        perform(&act);
        break;
    case STOP:
        stop();
        break;
    case POKE:
        poke(input);
        break;
    case KICK:
        eventfd_write(kick_fd, 1);
        break;
    case STEPS:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t flags = take8(&input);

    share_lay_out();
    memset(&now, 0, sizeof(now));
    HOLDS((now.desc = aligned_alloc(16, SIZE * sizeof(*now.desc))));
    HOLDS((now.avail = malloc(6 + 2 * SIZE)));
    HOLDS((now.used = malloc(6 + 8 * SIZE)));
    HOLDS((now.ram = calloc(CHAINS, AREA_BYTES)));
    HOLDS((now.mounts = ph_mounts_new()));
    now.span = (struct ph_span){RAM_GPA, CHAINS * AREA_BYTES, now.ram};
    now.setup = (struct ph_ring_setup){
        .desc = now.desc,
        .avail = now.avail,
        .used = now.used,
        .spans = &now.span,
        .counters = &now.counters,
        .span_count = 1,
        .size = SIZE,
        .kick_fd = kick_fd,
        .call_fd = call_fd,
        .stop_fd = stop_fd,
        .event_idx = flags & 1,
        .indirect = 1,
        .counts_slots = flags >> 1 & 1,
    };
    reset();
    perform(&(struct act){.step = MOUNT, .flags = flags >> 2});
    for (int i = 0; i < MAX_STEPS && input.size; i++)
        take_step(&input);
    ph_ring_free(now.ring);
    ph_mounts_free(now.mounts);
    for (int i = 0; i < SLOTS; i++)
        if (now.kept[i])
            ph_mount_release(now.kept[i]);
    free(now.desc);
    free(now.avail);
    free(now.used);
    free(now.ram);
    share_check_outside();
    share_check_descriptors();
    return 0;
}

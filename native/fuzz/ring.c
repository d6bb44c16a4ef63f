/*
 * Fuzz target: a guest's ring and its descriptor chains, native/queue.c and chain.c.
 *
 * The input is the guest's memory (ring and spans), and then what guest and device do in turn. With
 * MUTATING, the memory changes all the time.
 */
#include "../queue.h"

#include <sys/eventfd.h>

#include "fuzz.h"
#include "guest_memory.h"
#include "guest_ring.h"
#include "mutator.h"

enum {
    MAX_OPS = 200,
    MAX_WAITS = 2,
    SLOT_BYTES = 2048,
};

enum op { LOOK, TAKE, PUT_BACK, PUSH, NOTIFY, OFFER, DESCRIBE, POKE, WAIT, SET_CALL, CLOSE, OPS };

/* The device of one input, and what is known of it. */
struct device {
    struct ph_queue *queue;
    struct ph_queue_state *state;
    struct ph_counters counters;
    uint32_t size, span_count;
    struct ph_chain chain;
    bool seen, taken, closed;
    int waits;
};

static int kick_fd, call_fd, stop_fd;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    kick_fd = eventfd(0, EFD_NONBLOCK);
    call_fd = eventfd(0, EFD_NONBLOCK);
    stop_fd = eventfd(1, EFD_NONBLOCK); /* readable, so that no wait is long */
    memory_make();
    return 0;
}

static void look(struct device *device)
{
    enum ph_look look = ph_queue_look(device->queue);
    uint16_t waiting = (uint16_t)(device->state->seen_avail - device->state->next_avail);

    HOLDS(look == PH_LOOK_PYTHON ||
          (waiting <= device->size && (look == PH_LOOK_CHAIN) == !!waiting));
    waiting = (uint16_t)(guest_avail16(1) - device->state->next_avail);
    HOLDS(IS_MUTATING || (look == PH_LOOK_PYTHON) == (waiting > device->size));
    device->seen = look == PH_LOOK_CHAIN;
}

static void take(struct device *device)
{
    struct ph_queue_state was = *device->state;
    struct ph_counters counted = device->counters;
    const struct ph_chain *chain = &device->chain;

    if (!device->seen || device->taken)
        return;
    device->taken = ph_queue_take(device->queue, &device->chain);
    device->seen = false;
    if (!device->taken) {
        HOLDS(!memcmp(&was, device->state, sizeof(was)));
        HOLDS(device->counters.bytes_in == counted.bytes_in);
        return;
    }
    memory_check_pieces(device->span_count, chain->readable, chain->readable_count,
                        chain->readable_bytes);
    memory_check_pieces(device->span_count, chain->writable, chain->writable_count,
                        chain->writable_bytes);
    HOLDS(chain->readable_count + chain->writable_count);
    HOLDS(chain->readable_bytes + chain->writable_bytes <= UINT32_MAX);
    HOLDS(device->state->next_avail == (uint16_t)(was.next_avail + 1));
    HOLDS(device->counters.bytes_in == counted.bytes_in + chain->readable_bytes);
}

static void put_back(struct device *device)
{
    uint16_t next_avail = device->state->next_avail;

    if (device->taken) {
        ph_queue_put_back(device->queue, &device->chain);
        HOLDS(device->state->next_avail == (uint16_t)(next_avail - 1));
    }
    device->taken = false;
}

/* Check the used ring as its driver sees it. */
static void check_pushed(const struct device *device, uint32_t written)
{
    uint32_t slot = (uint16_t)(device->state->next_used - 1) % device->size, element[2];
    uint16_t idx;

    memcpy(&idx, parts[MEMORY_USED].start + 2, sizeof(idx));
    memcpy(element, parts[MEMORY_USED].start + 4 + 8 * slot, sizeof(element));
    if (!IS_MUTATING)
        HOLDS(idx == device->state->next_used && element[1] == written &&
              element[0] < device->size);
}

static void push(struct device *device, struct input *input)
{
    uint64_t requests = device->counters.requests;

    if (device->taken) {
        uint32_t written = take16(input) * 64u;

        ph_queue_push(device->queue, written);
        if (!device->closed)
            check_pushed(device, written);
        HOLDS(device->counters.requests == requests + 1);
    }
    device->taken = false;
}

static void nothing(void *context)
{
    (void)context;
}

static void wait(struct device *device, struct input *input)
{
    if (device->taken || device->closed || device->waits++ >= MAX_WAITS)
        return;
    if (take8(input) & 1)
        eventfd_write(kick_fd, 1);
    ph_queue_wait(device->queue, nothing, NULL);
}

static void act_as_device(struct device *device, struct input *input, enum op op)
{
    switch (op) {
    case LOOK:
        look(device);
        break;
    case TAKE:
        take(device);
        break;
    case PUT_BACK:
        put_back(device);
        break;
    case PUSH:
        push(device, input);
        break;
    case NOTIFY:
        ph_queue_notify(device->queue);
        HOLDS(!device->state->unsignalled && !device->state->unsignalled_bytes);
        break;
    case WAIT:
        wait(device, input);
        break;
    case SET_CALL:
        ph_queue_set_call(device->queue, take8(input) & 1 ? call_fd : -1);
        break;
    case CLOSE:
        ph_queue_stop(device->queue);
        ph_queue_close(device->queue);
        device->closed = true;
        break;
    default:
        break;
    }
}

static void drive(struct input *input, struct device *device)
{
    for (int i = 0; i < MAX_OPS && input->size; i++) {
        enum op op = take8(input) % OPS;

        if (op == OFFER || op == DESCRIBE || op == POKE) {
            guest_act(input,
                      op == OFFER      ? GUEST_OFFERS
                      : op == DESCRIBE ? GUEST_DESCRIBES
                                       : GUEST_POKES,
                      device->size);
            continue;
        }
        memory_remember();
        act_as_device(device, input, op);
        HOLDS(device->counters.highest_slot <= (spans[0].size_bytes + SLOT_BYTES - 1) / SLOT_BYTES);
        memory_check(device->closed && op != CLOSE);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_size)
{
    struct input input = {data, data_size};
    uint8_t flags = take8(&input);
    uint16_t base = flags & 16 ? 0xfffe : 0;
    struct target targets[MEMORY_PARTS];
    struct device device = {
        .size = 1u << take8(&input) % 9,
        .span_count = flags & 8 ? 1 : MEMORY_SPANS, /* a pool is the only span */
    };
    struct ph_queue_setup setup = {
        .spans = spans,
        .counters = &device.counters,
        .span_count = device.span_count,
        .size = device.size,
        .kick_fd = kick_fd,
        .call_fd = flags & 4 ? call_fd : -1,
        .stop_fd = stop_fd,
        .event_idx = flags & 1,
        .indirect = flags >> 1 & 1,
        .counts_slots = flags >> 3 & 1,
    };

    memory_lay_out(&input, device.size);
    setup.desc = parts[MEMORY_DESC].start;
    setup.avail = parts[MEMORY_AVAIL].start;
    setup.used = parts[MEMORY_USED].start;
    HOLDS((device.queue = ph_queue_new(&setup)));
    device.state = ph_queue_state(device.queue);
    *device.state = (struct ph_queue_state){.next_avail = base, .next_used = base};
    for (int i = 0; i < MEMORY_PARTS; i++)
        targets[i] = (struct target){parts[i].start, parts[i].size};
    mutator_begin(targets, MEMORY_PARTS, data_size ? data[data_size - 1] + 256 * data_size : 0);
    drive(&input, &device);
    mutator_end();
    ph_queue_free(device.queue);
    return 0;
}

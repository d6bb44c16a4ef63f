/*
 * Fuzz target: walking along the descriptor chains of a guest, native/ring.c.
 *
 * The input is the guest's memory (ring and spans), and then what guest and device do in turn.
 * Every part of the memory lies alone before a page that cannot be touched, with poison in front of
 * it. With MUTATING, a second thread goes on writing into all of the memory: what is checked must
 * be what is used, and nothing may be read twice.
 */
#include "fuzz.h"

#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../ring.h"

enum {
    PAGE_BYTES = 4096,
    PART_PAGES = 4,
    SPANS = 3,
    PARTS = 3 + SPANS,
    MAX_OPS = 200,
    MAX_WAITS = 2,
    DESC_BYTES = 16,
};

enum op { LOOK, TAKE, PUT_BACK, PUSH, NOTIFY, OFFER, DESCRIBE, POKE, WAIT, SET_CALL, CLOSE, OPS };

/* Memory of the guest that may be touched: the end of a stretch that otherwise may not. */
struct part {
    uint8_t *pages;
    uint8_t *start;
    size_t size;
};

static struct part parts[PARTS]; /* desc, avail, used, spans */
static struct ph_span spans[SPANS];
static uint32_t span_count;
static int kick_fd, call_fd, stop_fd;

#ifdef MUTATING
static pthread_barrier_t together;
static atomic_bool mutating;
static uint64_t seed;
static struct ph_span targets[PARTS];

/* Writes words that are likely to be something else in every place. */
static void mutate(void)
{
    static const uint64_t WORDS[] = {0,  1,      2,      4,      7,        16,
                                     64, 0x1000, 0x2000, 0xffff, 1u << 20, ~0ull};
    uint64_t random = seed | 1;

    while (atomic_load_explicit(&mutating, memory_order_relaxed)) {
        const struct ph_span *target;
        size_t at, length;

        random = random * 6364136223846793005u + 1442695040888963407u;
        target = &targets[(random >> 33) % PARTS];
        length = (size_t)2 << (random >> 40) % 3;
        if (target->size_bytes < length)
            continue;
        at = (random >> 20) % (target->size_bytes - length + 1) / length * length;
        memcpy(target->address + at, &WORDS[(random >> 44) % 12], length);
    }
}

static void *run_mutator(void *unused)
{
    for (;;) {
        pthread_barrier_wait(&together);
        mutate();
        pthread_barrier_wait(&together);
    }
    return unused;
}
#else
/* What the device may not write to, as it was. */
static uint8_t before[PARTS][PART_PAGES * PAGE_BYTES];
#endif

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    for (int i = 0; i < PARTS; i++) {
        uint8_t *whole = mmap(NULL, (PART_PAGES + 2) * PAGE_BYTES, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        HOLDS(whole != MAP_FAILED);
        parts[i].pages = whole + PAGE_BYTES;
        HOLDS(!mprotect(parts[i].pages, PART_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE));
    }
    kick_fd = eventfd(0, EFD_NONBLOCK);
    call_fd = eventfd(0, EFD_NONBLOCK);
    stop_fd = eventfd(1, EFD_NONBLOCK); /* no wait is a long one */
#ifdef MUTATING
    pthread_t thread;

    pthread_barrier_init(&together, NULL, 2);
    HOLDS(!pthread_create(&thread, NULL, run_mutator, NULL));
#endif
    return 0;
}

static void place(struct part *part, size_t size, size_t align)
{
    size_t room = PART_PAGES * PAGE_BYTES;

    part->size = size;
    part->start = part->pages + (room - size) / align * align;
    ASAN_UNPOISON_MEMORY_REGION(part->pages, room);
    ASAN_POISON_MEMORY_REGION(part->pages, (size_t)(part->start - part->pages));
    ASAN_POISON_MEMORY_REGION(part->start + size,
                              (size_t)(part->pages + room - part->start) - size);
}

static void lay_out(struct input *input, uint32_t size)
{
    place(&parts[0], DESC_BYTES * size, 16);
    place(&parts[1], 6 + 2 * size, 2);
    place(&parts[2], 6 + 8 * size, 4);
    for (int i = 0; i < SPANS; i++) {
        struct part *part = &parts[3 + i];

        place(part, 1 + take16(input) % (PART_PAGES * PAGE_BYTES), 1);
        /* The last one ends where addresses do. */
        spans[i] = (struct ph_span){
            .gpa = i == SPANS - 1 ? -(uint64_t)part->size : 0x1000u + 0x10000u * (uint64_t)i,
            .size_bytes = part->size,
            .address = part->start,
        };
    }
    take_bytes(input, parts[0].start, parts[0].size);
    take_bytes(input, parts[1].start, parts[1].size);
    memset(parts[2].start, 0, parts[2].size);
    for (int i = 3; i < PARTS; i++) {
        uint8_t length = take8(input);

        memset(parts[i].start, 0, parts[i].size);
        take_bytes(input, parts[i].start, length < parts[i].size ? length : parts[i].size);
    }
}

static bool is_in_a_span(const struct iovec *piece)
{
    const uint8_t *start = piece->iov_base;

    for (uint32_t i = 0; i < span_count; i++) {
        if (start >= spans[i].address && piece->iov_len <= spans[i].size_bytes &&
            (size_t)(start - spans[i].address) <= spans[i].size_bytes - piece->iov_len)
            return true;
    }
    return false;
}

static void check_pieces(const struct iovec *pieces, uint32_t count, uint64_t bytes)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < count; i++) {
        HOLDS(pieces[i].iov_len && is_in_a_span(&pieces[i]));
        HOLDS(!__asan_region_is_poisoned(pieces[i].iov_base, pieces[i].iov_len));
        sum += pieces[i].iov_len;
    }
    HOLDS(sum == bytes);
}

static uint16_t avail16(size_t index)
{
    uint16_t value;

    memcpy(&value, parts[1].start + 2 * index, sizeof(value));
    return value;
}

/* What the guest does to its memory; the mutator does no more. */
static void act_as_guest(struct input *input, enum op op, uint32_t size)
{
    if (op == OFFER) {
        uint16_t idx = avail16(1), count = take8(input);

        for (uint16_t i = 0; i < count % 8; i++) {
            uint16_t head = take8(input);

            memcpy(parts[1].start + 4 + 2 * ((uint16_t)(idx + i) % size), &head, sizeof(head));
        }
        idx = (uint16_t)(idx + count);
        memcpy(parts[1].start + 2, &idx, sizeof(idx));
    } else if (op == DESCRIBE) {
        /* addr and len are short, so that they often fit. */
        uint32_t slot = take8(input) % size, span = take8(input) % SPANS;
        uint64_t addr = spans[span].gpa + take16(input);
        uint32_t len = take16(input);
        uint16_t flags = take8(input), next = take8(input);
        uint8_t *to = parts[0].start + DESC_BYTES * slot;

        memcpy(to, &addr, 8);
        memcpy(to + 8, &len, 4);
        memcpy(to + 12, &flags, 2);
        memcpy(to + 14, &next, 2);
    } else if (op == POKE) {
        struct part *part = &parts[take8(input) % PARTS];
        size_t at = take16(input);
        uint8_t value = take8(input);

        if (part != &parts[2])
            part->start[at % part->size] = value;
    }
}

/* As a driver sees the ring after a push. */
static void check_pushed(const struct ph_ring_state *state, uint32_t size, uint32_t written)
{
    uint32_t slot = (uint16_t)(state->next_used - 1) % size, element[2];
    uint16_t idx;

    memcpy(&idx, parts[2].start + 2, sizeof(idx));
    memcpy(element, parts[2].start + 4 + 8 * slot, sizeof(element));
#ifndef MUTATING
    HOLDS(idx == state->next_used && element[1] == written && element[0] < size);
#else
    (void)written;
#endif
}

static void nothing(void *context)
{
    (void)context;
}

static void drive(struct input *input, struct ph_ring *ring, uint32_t size,
                  const struct ph_counters *counters)
{
    struct ph_ring_state *state = ph_ring_state(ring);
    struct ph_chain chain;
    bool seen = false, taken = false, closed = false;
    int waits = 0;

    for (int i = 0; i < MAX_OPS && input->size; i++) {
        enum op op = take8(input) % OPS;
        struct ph_ring_state was = *state;
        struct ph_counters counted = *counters;

#ifndef MUTATING
        for (int part = 0; part < PARTS; part++)
            memcpy(before[part], parts[part].start, parts[part].size);
#endif
        switch (op) {
        case LOOK: {
            enum ph_look look = ph_ring_look(ring);
            uint16_t waiting = (uint16_t)(state->seen_avail - state->next_avail);

            HOLDS(look == PH_LOOK_PYTHON ||
                  (waiting <= size && (look == PH_LOOK_CHAIN) == !!waiting));
#ifndef MUTATING
            waiting = (uint16_t)(avail16(1) - state->next_avail);
            HOLDS((look == PH_LOOK_PYTHON) == (waiting > size));
#endif
            seen = look == PH_LOOK_CHAIN;
            break;
        }
        case TAKE:
            if (!seen || taken)
                break;
            taken = ph_ring_take(ring, &chain);
            seen = false;
            if (taken) {
                check_pieces(chain.readable, chain.readable_count, chain.readable_bytes);
                check_pieces(chain.writable, chain.writable_count, chain.writable_bytes);
                HOLDS(chain.readable_count + chain.writable_count);
                HOLDS(chain.readable_bytes + chain.writable_bytes <= UINT32_MAX);
                HOLDS(state->next_avail == (uint16_t)(was.next_avail + 1));
                HOLDS(counters->bytes_in == counted.bytes_in + chain.readable_bytes);
            } else {
                HOLDS(!memcmp(&was, state, sizeof(was)) && counters->bytes_in == counted.bytes_in);
            }
            break;
        case PUT_BACK:
            if (taken) {
                ph_ring_put_back(ring, &chain);
                HOLDS(state->next_avail == (uint16_t)(was.next_avail - 1));
            }
            taken = false;
            break;
        case PUSH:
            if (taken) {
                uint32_t written = take16(input) * 64u;

                ph_ring_push(ring, written);
                if (!closed)
                    check_pushed(state, size, written);
                HOLDS(counters->requests == counted.requests + 1);
            }
            taken = false;
            break;
        case NOTIFY:
            ph_ring_notify(ring);
            HOLDS(!state->unsignalled && !state->unsignalled_bytes);
            break;
        case OFFER:
        case DESCRIBE:
        case POKE:
            act_as_guest(input, op, size);
            continue;
        case WAIT:
            if (!taken && !closed && waits++ < MAX_WAITS) {
                uint8_t kicks = take8(input) & 1;

                if (kicks)
                    eventfd_write(kick_fd, 1);
                ph_ring_wait(ring, nothing, NULL);
            }
            break;
        case SET_CALL:
            ph_ring_set_call(ring, take8(input) & 1 ? call_fd : -1);
            break;
        case CLOSE:
            ph_ring_stop(ring);
            ph_ring_close(ring);
            closed = true;
            break;
        case OPS:
            break;
        }
        HOLDS(counters->highest_slot <= (spans[0].size_bytes + 2047) / 2048);
#ifndef MUTATING
        for (int part = 0; part < PARTS; part++)
            HOLDS(part == 2 || !memcmp(before[part], parts[part].start, parts[part].size));
        if (closed && op != CLOSE)
            HOLDS(!memcmp(before[2], parts[2].start, parts[2].size));
#endif
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_size)
{
    struct input input = {data, data_size};
    uint8_t flags = take8(&input);
    uint32_t size = 1u << take8(&input) % 9;
    struct ph_counters counters = {0};
    struct ph_ring_setup setup = {
        .spans = spans,
        .counters = &counters,
        .span_count = flags & 8 ? 1 : SPANS, /* a pool is alone */
        .size = size,
        .kick_fd = kick_fd,
        .call_fd = flags & 4 ? call_fd : -1,
        .stop_fd = stop_fd,
        .event_idx = flags & 1,
        .indirect = flags >> 1 & 1,
        .counts_slots = flags >> 3 & 1,
    };
    uint16_t base = flags & 16 ? 0xfffe : 0;
    struct ph_ring *ring;

    span_count = setup.span_count;
    lay_out(&input, size);
    setup.desc = parts[0].start;
    setup.avail = parts[1].start;
    setup.used = parts[2].start;
    ring = ph_ring_new(&setup);
    HOLDS(ring);
    *ph_ring_state(ring) = (struct ph_ring_state){.next_avail = base, .next_used = base};
#ifdef MUTATING
    for (int i = 0; i < PARTS; i++)
        targets[i] = (struct ph_span){0, parts[i].size, parts[i].start};
    seed = data_size ? data[data_size - 1] + 256 * data_size : 0;
    atomic_store(&mutating, true);
    pthread_barrier_wait(&together);
#endif
    drive(&input, ring, size, &counters);
#ifdef MUTATING
    atomic_store(&mutating, false);
    pthread_barrier_wait(&together);
#endif
    ph_ring_free(ring);
    return 0;
}

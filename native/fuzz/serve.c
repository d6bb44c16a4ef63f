/*
 * Fuzz target: the loop of a virtio-fs queue, native/serve.c, with everything below it.
 *
 * The input says what guest and owner do in turn: the guest puts requests for any share of the
 * device into its ring, the owner adds and removes shares, has the ring served, and takes it away.
 * The target takes what the loop leaves in the ring, as Python does. With MUTATING, requests change
 * while they are served.
 */
#include "../serve.h"

#include <linux/fuse.h>
#include <stdbool.h>
#include <sys/eventfd.h>

#include "fuzz.h"
#include "guest.h"
#include "mutator.h"
#include "share.h"

enum {
    MAX_STEPS = 64,
    KEPT = 16, /* of the flags of a mount */
};

enum step { REQUEST, SERVE, MOUNT, UNMOUNT, STOP, SET_CALL, POKE, KICK, STEPS };

/* Of one input. */
static struct {
    struct guest guest;
    struct ph_counters counters;
    struct ph_queue_setup setup;
    struct ph_queue *queue;
    struct ph_mounts *mounts;
    bool is_mounted[GUEST_SLOTS];
    struct ph_mount *kept[GUEST_SLOTS]; /* to be put in again and again */
} now;

static struct ph_worker *worker;
static int kick_fd, call_fd, stop_fd, wake_fd;

static void put_mount(uint64_t slot, uint8_t flags)
{
    struct ph_rules rules = {
        .ino_mask = slot << PH_SLOT_SHIFT,
        .uid = PH_KEEP_ID,
        .gid = PH_KEEP_ID,
        .keep_dir = 0177777,
        .keep_file = 0177777,
        .valid_s = 1,
        .read_only = flags & 1,
        .to_python = flags >> 1 & 1,
        .writeback = flags >> 2 & 1,
        .umask = 1,
        .acls = 1,
    };
    struct ph_mount *mount = flags & KEPT ? now.kept[slot] : NULL;

    if (!mount)
        mount = share_open_at(slot << PH_SLOT_SHIFT | FUSE_ROOT_ID, &rules, flags >> 3 & 1);
    HOLDS(ph_mounts_put(now.mounts, slot, mount));
    if (flags & KEPT)
        now.kept[slot] = mount;
    else
        ph_mount_release(mount);
    now.is_mounted[slot] = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    share_mount();
    HOLDS((worker = ph_worker_new(false)));
    kick_fd = eventfd(0, EFD_NONBLOCK);
    call_fd = eventfd(0, EFD_NONBLOCK);
    stop_fd = eventfd(0, EFD_NONBLOCK);
    wake_fd = eventfd(1, EFD_NONBLOCK); /* the loop ends when it has nothing to do */
    return 0;
}

/* Serve the ring from where it was left, as a queue's thread does when it begins. */
static void attach(struct ph_queue_state state)
{
    HOLDS((now.queue = ph_queue_new(&now.setup)));
    *ph_queue_state(now.queue) = state;
    ph_queue_set_wake(now.queue, wake_fd);
}

/* Take the next chain, and give it back with nothing written. */
static bool act_as_python(void)
{
    struct ph_chain chain;

    if (ph_queue_look(now.queue) != PH_LOOK_CHAIN || !ph_queue_take(now.queue, &chain)) {
        HOLDS(now.guest.is_hostile);
        return false;
    }
    guest_expect_python(&now.guest, (uint16_t)(ph_queue_state(now.queue)->next_avail - 1));
    ph_queue_push(now.queue, 0);
    return true;
}

static void serve(void)
{
    enum ph_outcome outcome;

    do {
        guest_begin_mutating(&now.guest);
        outcome = (enum ph_outcome)ph_serve(now.queue, worker, now.mounts);
        mutator_end();
        HOLDS(outcome == PH_OUTCOME_PYTHON || outcome == PH_OUTCOME_WOKEN);
        if (outcome == PH_OUTCOME_PYTHON && !act_as_python()) {
            ph_queue_free(now.queue);
            guest_reset(&now.guest);
            attach((struct ph_queue_state){0});
            return;
        }
    } while (outcome == PH_OUTCOME_PYTHON);
    guest_collect(&now.guest, now.is_mounted);
}

/* Take the ring away; a request that ends too late does not touch it. */
static void stop(void)
{
    static uint8_t before[GUEST_USED_BYTES];
    struct ph_queue_state state;

    ph_queue_stop(now.queue);
    ph_queue_close(now.queue);
    memcpy(before, now.guest.used, sizeof(before));
    HOLDS(ph_serve(now.queue, worker, now.mounts) == PH_OUTCOME_STOPPED);
    ph_queue_push(now.queue, 0);
    ph_queue_notify(now.queue);
    HOLDS(!memcmp(before, now.guest.used, sizeof(before)));
    state = *ph_queue_state(now.queue);
    ph_queue_free(now.queue);
    attach(state);
}

static void take_step(struct input *input)
{
    enum step step = take8(input) % STEPS;
    uint8_t slot, flags;

    switch (step) {
    case REQUEST:
        guest_ask(&now.guest, input);
        break;
    case SERVE:
        serve();
        break;
    case MOUNT:
    case UNMOUNT:
    case SET_CALL:
        slot = take8(input) % GUEST_SLOTS;
        flags = take8(input);
        if (step == MOUNT) {
            put_mount(slot, flags);
        } else if (step == UNMOUNT) {
            HOLDS(ph_mounts_put(now.mounts, slot, NULL));
            now.is_mounted[slot] = false;
        } else {
            ph_queue_set_call(now.queue, flags & 1 ? call_fd : -1);
        }
        break;
    case STOP:
        stop();
        break;
    case POKE:
        guest_poke(&now.guest, input);
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
    guest_make(&now.guest);
    HOLDS((now.mounts = ph_mounts_new()));
    now.setup = (struct ph_queue_setup){
        .desc = now.guest.desc,
        .avail = now.guest.avail,
        .used = now.guest.used,
        .spans = &now.guest.span,
        .counters = &now.counters,
        .span_count = 1,
        .size = GUEST_RING_SIZE,
        .kick_fd = kick_fd,
        .call_fd = call_fd,
        .stop_fd = stop_fd,
        .event_idx = flags & 1,
        .indirect = 1,
        .counts_slots = flags >> 1 & 1,
    };
    attach((struct ph_queue_state){0});
    put_mount(0, flags >> 2);
    for (int i = 0; i < MAX_STEPS && input.size; i++)
        take_step(&input);
    ph_queue_free(now.queue);
    ph_mounts_free(now.mounts);
    for (int i = 0; i < GUEST_SLOTS; i++)
        if (now.kept[i])
            ph_mount_release(now.kept[i]);
    guest_free(&now.guest);
    share_check_outside();
    share_check_descriptors();
    return 0;
}

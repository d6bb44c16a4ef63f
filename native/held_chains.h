/*
 * Chains that a queue has taken and not given back, in the order of its ring, for frames that span
 * chains or travel together.
 *
 * Owns how many those may be, and that all of them appear in the used ring at once. The queue's
 * thread alone uses them. Must not know what the buffers are for.
 */
#ifndef PORTHOLE_HELD_CHAINS_H
#define PORTHOLE_HELD_CHAINS_H

#include "queue.h"

enum {
    PH_MOST_HELD = 64,           /* the same as MAX_QUEUED in deferral.py */
    PH_MOST_HELD_BUFFERS = 1000, /* a system call takes 1024: there is room for some of ours */
};

struct ph_held_chain {
    uint32_t head;
    uint32_t buffers;
    uint64_t readable_bytes;
    uint64_t bytes;
};

struct ph_held {
    struct ph_queue *queue;
    struct iovec *row; /* the buffers of all chains; NULL: none is held yet */
    uint32_t count;
    uint32_t buffers;
    uint64_t bytes;
    struct ph_held_chain chains[PH_MOST_HELD];
};

enum ph_take {
    PH_TAKE_CHAIN,
    PH_TAKE_NOTHING, /* the driver has made none available */
    PH_TAKE_FULL,    /* no more may be held */
    PH_TAKE_PYTHON,  /* the next chain is Python's: it breaks a rule, or is too finely divided */
};

bool ph_held_begin(struct ph_held *held, struct ph_queue *queue); /* false: no memory */
/* Put all chains back, and free the row. */
void ph_held_end(struct ph_held *held);

/* Take one more; its buffers are the last in the row, and move when others are given back. */
enum ph_take ph_held_take(struct ph_held *held, struct ph_chain *chain);
/* Undo the latest takes. */
void ph_held_put_back(struct ph_held *held, uint32_t count);
/* Give the first chains back, filled in their order with so many bytes together. */
void ph_held_push(struct ph_held *held, uint32_t count, uint64_t written_bytes);

#endif

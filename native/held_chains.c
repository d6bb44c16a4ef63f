#include "held_chains.h"

#include <stdlib.h>
#include <string.h>

#include "queue_private.h"

bool ph_held_begin(struct ph_held *held, struct ph_queue *queue)
{
    *held = (struct ph_held){.queue = queue};
    held->row = calloc(PH_MOST_HELD_BUFFERS + ph_queue_most_buffers(queue), sizeof(*held->row));
    return held->row;
}

void ph_held_end(struct ph_held *held)
{
    ph_held_put_back(held, held->count);
    free(held->row);
}

enum ph_take ph_held_take(struct ph_held *held, struct ph_chain *chain)
{
    struct ph_held_chain *taken = &held->chains[held->count];

    if (held->count == PH_MOST_HELD)
        return PH_TAKE_FULL;
    switch (ph_queue_look(held->queue)) {
    case PH_LOOK_NOTHING:
        return PH_TAKE_NOTHING;
    case PH_LOOK_PYTHON:
        return PH_TAKE_PYTHON;
    case PH_LOOK_CHAIN:
        break;
    }
    if (!ph_queue_take_into(held->queue, held->row + held->buffers, chain))
        return PH_TAKE_PYTHON;
    *taken = (struct ph_held_chain){
        .head = held->queue->head,
        .buffers = chain->readable_count + chain->writable_count,
        .readable_bytes = chain->readable_bytes,
        .bytes = chain->readable_bytes + chain->writable_bytes,
    };
    held->count++;
    held->buffers += taken->buffers;
    held->bytes += taken->bytes;
    if (held->buffers <= PH_MOST_HELD_BUFFERS)
        return PH_TAKE_CHAIN;
    ph_held_put_back(held, 1);
    return held->count ? PH_TAKE_FULL : PH_TAKE_PYTHON;
}

void ph_held_put_back(struct ph_held *held, uint32_t count)
{
    for (; count; count--) {
        const struct ph_held_chain *last = &held->chains[--held->count];

        held->buffers -= last->buffers;
        held->bytes -= last->bytes;
        held->queue->state.next_avail--;
        held->queue->setup.counters->bytes_in -= last->readable_bytes;
    }
}

void ph_held_push(struct ph_held *held, uint32_t count, uint64_t written_bytes)
{
    uint64_t left = written_bytes;
    uint32_t buffers = 0;
    bool is_open = true;

    for (uint32_t i = 0; i < count; i++) {
        const struct ph_held_chain *chain = &held->chains[i];
        uint32_t written = (uint32_t)(left < chain->bytes ? left : chain->bytes);

        is_open = ph_queue_hand_back(held->queue, chain->head, written);
        left -= written;
        buffers += chain->buffers;
        held->bytes -= chain->bytes;
    }
    held->count -= count;
    held->buffers -= buffers;
    memmove(held->chains, held->chains + count, held->count * sizeof(*held->chains));
    memmove(held->row, held->row + buffers, held->buffers * sizeof(*held->row));
    if (!is_open)
        return;
    ph_queue_publish(held->queue, count, written_bytes);
    if (ph_queue_is_batch(held->queue))
        ph_queue_notify(held->queue);
}

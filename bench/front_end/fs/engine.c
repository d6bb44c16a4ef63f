/* Workers: each keeps the queues that it was given at their depth and takes replies as they come.
 *
 * Must not know what an operation is made of.
 */
#include "engine.h"

#include <stdlib.h>

#include "device.h"
#include "process.h"
#include "waiting.h"
#include "worker.h"
#include "workload.h"

static void begin(struct worker *worker, struct queue *queue, struct slot *slot)
{
    struct run *run = worker->run;

    if (run->phase == PHASE_OVER)
        return;
    if (run->options->ops && atomic_fetch_sub(&run->budget, 1) <= 0)
        return;
    operation_begin(queue, slot);
}

static bool take_replies(struct worker *worker, struct queue *queue)
{
    struct request *request;
    uint32_t written;
    bool any = false;

    while ((request = ring_reap(&queue->ring, &written))) {
        struct slot *slot = request->slot;

        any = true;
        if (operation_goes_on(worker, request,
                              request_reply(request, &queue->device->ram, written)))
            continue;
        queue->in_flight--;
        if (worker->run->phase == PHASE_TIMED) {
            histogram_add(&worker->histogram, now_ns() - slot->start_ns);
            worker->ops++;
            if (worker->run->options->operation <= OP_WRITE)
                worker->bytes += worker->run->options->block_bytes;
        }
        begin(worker, queue, slot);
    }
    return any;
}

static void run_lists(struct worker *worker)
{
    struct run *run = worker->run;

    worker->listed = allocate(run->options->files, sizeof *worker->listed);
    /* The first listing does not count: it makes the tables of a new device grow. */
    list_directory(worker, worker->queues[0]->device, false);
    while (run->phase != PHASE_OVER &&
           (!run->options->ops || atomic_fetch_sub(&run->budget, 1) > 0))
        list_directory(worker, worker->queues[0]->device, run->phase == PHASE_TIMED);
    free(worker->listed);
}

void *worker_run(void *argument)
{
    struct worker *worker = argument;
    const struct options *options = worker->run->options;
    struct ring **rings = allocate(worker->queue_count, sizeof *rings);
    bool busy = true;

    if (options->operation == OP_LIST) {
        run_lists(worker);
        busy = false;
    }
    for (unsigned i = 0; i < worker->queue_count; i++) {
        rings[i] = &worker->queues[i]->ring;
        for (unsigned slot = 0; busy && slot < options->depth; slot++)
            begin(worker, worker->queues[i], &worker->queues[i]->slots[slot]);
    }
    while (busy) {
        bool any = false;

        busy = false;
        for (unsigned i = 0; i < worker->queue_count; i++) {
            any |= take_replies(worker, worker->queues[i]);
            busy |= worker->queues[i]->in_flight > 0;
        }
        if (busy && !any)
            await_used(rings, worker->queue_count, options->polling);
    }
    free(rings);
    return NULL;
}

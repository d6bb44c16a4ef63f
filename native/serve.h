/*
 * The loop of a virtio-fs queue, in which hot requests are served without Python.
 *
 * Python calls it on the queue's thread, without the interpreter's lock; it returns when there is
 * something for Python to do.
 */
#ifndef PORTHOLE_SERVE_H
#define PORTHOLE_SERVE_H

#include "mounts.h"
#include "outcome.h"
#include "queue.h"
#include "request.h"

/* Returns an enum ph_outcome. */
int ph_serve(struct ph_queue *queue, struct ph_worker *worker, struct ph_mounts *mounts);

#endif

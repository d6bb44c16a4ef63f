/* Operations: one from its first request to its last reply. */
#ifndef FRONT_END_WORKLOAD_H
#define FRONT_END_WORKLOAD_H

#include <stdbool.h>

#include "device.h"
#include "requests.h"
#include "worker.h"

void operation_begin(struct queue *queue, struct slot *slot);
bool operation_goes_on(struct worker *worker, struct request *request, struct reply reply);
void list_directory(struct worker *worker, struct device *device, bool timed);

#endif

/* Waiting for a device. */
#ifndef FRONT_END_WAITING_H
#define FRONT_END_WAITING_H

#include <stdbool.h>

#include "ring.h"

/* Wait until one of the rings has a used chain. */
void await_used(struct ring *const *rings, unsigned count, bool polling);

#endif

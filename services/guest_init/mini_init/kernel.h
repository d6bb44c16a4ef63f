/*
 * What this kernel is and publishes. services/guest_init/guest.py has the same values.
 */
#ifndef MINI_INIT_KERNEL_H
#define MINI_INIT_KERNEL_H

#include "messages.h"

/* Read them now; the times are left alone. */
void kernel_read(struct capabilities *capabilities);

#endif

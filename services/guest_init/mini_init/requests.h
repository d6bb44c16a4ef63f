/*
 * The messages of the host, and who carries them out.
 */
#ifndef MINI_INIT_REQUESTS_H
#define MINI_INIT_REQUESTS_H

#include <stdint.h>

#include "messages.h"

/* Carry out a message, or begin to; there is room for an answer. */
void request_carry_out(const uint8_t *message, uint32_t length, struct capabilities *capabilities);
/* Whether the host has asked for the end of the guest. */
bool requests_want_end(void);

#endif

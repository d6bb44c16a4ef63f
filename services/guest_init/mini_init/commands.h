/*
 * The commands that run: their streams, their windows and their ends.
 */
#ifndef MINI_INIT_COMMANDS_H
#define MINI_INIT_COMMANDS_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "messages.h"
#include "spawn.h"

#define COMMAND_LIMIT 64u
#define COMMAND_POLLS (4 * COMMAND_LIMIT)
#define WINDOW_BYTES 262144u /* of each stream */

/* Start a command; the request is answered when it runs, or cannot. */
void command_start(uint32_t id, const struct program *program);

/* What the host has for a command; nothing happens if there is none of this number. */
void command_input(uint32_t id, const uint8_t *bytes, size_t length);
void command_end_input(uint32_t id);
void command_resize(uint32_t id, uint32_t rows, uint32_t columns);
void command_signal(uint32_t id, int signal);
void command_close_output(uint32_t id, enum stream stream);
void command_allow(uint32_t id, enum stream stream, uint32_t bytes);

/* A process has ended; nothing happens if it is no command. */
void commands_reaped(pid_t pid, int wait_status);
/* Write what to wait for, COMMAND_POLLS at most; returns how many. */
unsigned commands_poll(struct pollfd *waits);
/* Move what can be moved. */
void commands_turn(void);
/* The host has gone: hang up, and close the streams. */
void commands_hang_up(void);

#endif

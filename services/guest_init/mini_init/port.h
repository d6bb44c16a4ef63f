/*
 * The virtio-serial port that the host listens on, with what waits to be sent and to be read.
 * There is one. Must not know messages.
 */
#ifndef MINI_INIT_PORT_H
#define MINI_INIT_PORT_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#define PORT_NAME "org.porthole.init.0"

/* Look for the port, and for a host that has connected to it. Returns whether a host has connected
 * since the last call; what was sent and received before is dropped then. */
bool port_look(void);
/* Whether a host was connected when it was last looked for. */
bool port_is_connected(void);
/* What to wait for; its fd is negative while nobody is connected. */
struct pollfd port_poll(void);
/* Send and receive what is possible, after poll. Returns false if the host has disconnected. */
bool port_turn(short events);

/* Take the next message of the host. */
bool port_take(const uint8_t **message, uint32_t *length);
/* The length of a message over the limit that was skipped since the last call; 0: none was. */
uint32_t port_take_too_long(void);

/* Whether there is room for the output of commands, and for an answer. */
bool port_has_room_for_output(void);
bool port_has_room_for_answer(void);
/* Where to write a message of at most FRAME_MESSAGE_LIMIT bytes, when there is room for it. */
uint8_t *port_message(void);
/* Send the message that was written there. */
void port_send(uint32_t length);

#endif

/*
 * The messages that mini_init sends. Each has room on the port: see port_has_room_for_answer.
 */
#ifndef MINI_INIT_MESSAGES_H
#define MINI_INIT_MESSAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "listening.h"
#include "published.h"

#define OUTPUT_BYTES 32768u /* of one message */

struct capabilities {
    struct pool pool;
    const char *kernel_release;
    bool seccomp_user_notification;
    uint64_t started_ns, read_ns; /* CLOCK_BOOTTIME */
};

enum stream { STREAM_OUTPUT = 1, STREAM_ERROR = 2 }; /* numbered as Stream */

void send_hello(uint32_t request_id, const struct capabilities *capabilities);
void send_done(uint32_t request_id);
/* Say why a request was not carried out: errno, and what failed. */
void send_failure(uint32_t request_id, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Where to put the next output of a command, at most OUTPUT_BYTES. */
uint8_t *output_buffer(void);
/* Send the output that was put there. */
void send_output(uint32_t run_id, enum stream stream, uint32_t length);
/* Say how a command ended, as of waitpid. */
void send_ended(uint32_t run_id, int wait_status);
void send_input_credit(uint32_t run_id, uint32_t bytes);
void send_listening(const struct listening *listening);

#endif

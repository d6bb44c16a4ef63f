/*
 * Moves the streams of commands, and says how they ended.
 *
 * A command has ended when its process has, and everything that it wrote was sent. What processes
 * that it leaves behind write later is not waited for.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "commands.h"
#include "log.h"
#include "port.h"

#define END_OF_FILE 4 /* VEOF of a new terminal */

struct source {
    int fd; /* negative: closed */
    uint32_t credit;
};

struct command {
    uint8_t *input; /* WINDOW_BYTES, of which input_held wait to be written */
    uint32_t id, input_held;
    pid_t pid;
    int wait_status;
    struct source sources[2];
    struct spawned files; /* out and error are in `sources` too */
    bool used, disowned, exited, input_ended;
};

static struct command commands[COMMAND_LIMIT];

static struct command *find(uint32_t id)
{
    for (unsigned i = 0; i < COMMAND_LIMIT; i++) {
        if (commands[i].used && !commands[i].disowned && commands[i].id == id)
            return &commands[i];
    }
    return NULL;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* A process that was made just now has no group of its own yet. */
static void signal_group(pid_t pid, int number)
{
    if (kill(-pid, number) && errno == ESRCH)
        (void)kill(pid, number);
}

static void release(struct command *command)
{
    close_fd(&command->files.started);
    close_fd(&command->files.input);
    close_fd(&command->files.output);
    close_fd(&command->files.error);
    close_fd(&command->files.terminal_end);
    free(command->input);
    *command = (struct command){0};
}

void command_start(uint32_t id, const struct program *program)
{
    struct command *command = NULL;

    for (unsigned i = 0; i < COMMAND_LIMIT && !command; i++) {
        if (!commands[i].used)
            command = &commands[i];
    }
    if (!command) {
        send_failure(id, EAGAIN, "%u commands run, which is the most", COMMAND_LIMIT);
        return;
    }
    *command = (struct command){.used = true, .id = id, .input = malloc(WINDOW_BYTES)};
    command->pid = command->input ? spawn(program, &command->files) : -1;
    if (command->pid < 0) {
        send_failure(id, errno, "the command cannot be started: %s", strerror(errno));
        free(command->input);
        *command = (struct command){0};
        return;
    }
    command->sources[0] = (struct source){command->files.output, WINDOW_BYTES};
    command->sources[1] = (struct source){command->files.error, WINDOW_BYTES};
}

void command_input(uint32_t id, const uint8_t *bytes, size_t length)
{
    struct command *command = find(id);

    if (!command || command->input_ended || command->files.input < 0)
        return;
    if (length > WINDOW_BYTES - command->input_held) {
        say("the host sends command %u more input than its window has; it is hung up", id);
        command_signal(id, SIGHUP);
        return;
    }
    memcpy(command->input + command->input_held, bytes, length);
    command->input_held += (uint32_t)length;
}

void command_end_input(uint32_t id)
{
    struct command *command = find(id);

    if (command)
        command->input_ended = true;
}

void command_resize(uint32_t id, uint32_t rows, uint32_t columns)
{
    struct command *command = find(id);
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};

    if (command && command->files.terminal_end >= 0)
        (void)ioctl(command->files.output, TIOCSWINSZ, &size);
}

void command_signal(uint32_t id, int number)
{
    struct command *command = find(id);

    /* The group of a process that was reaped may be another one's by now. */
    if (command && !command->exited)
        signal_group(command->pid, number);
}

void command_close_output(uint32_t id, enum stream stream)
{
    struct command *command = find(id);

    /* A terminal has one end for everything; it is hung up by SIGHUP. */
    if (!command || command->files.terminal_end >= 0)
        return;
    close_fd(stream == STREAM_ERROR ? &command->files.error : &command->files.output);
    command->sources[stream == STREAM_ERROR].fd = -1;
}

void command_allow(uint32_t id, enum stream stream, uint32_t bytes)
{
    struct command *command = find(id);
    struct source *source = command ? &command->sources[stream == STREAM_ERROR] : NULL;

    if (source)
        source->credit +=
            bytes < WINDOW_BYTES - source->credit ? bytes : WINDOW_BYTES - source->credit;
}

void commands_reaped(pid_t pid, int wait_status)
{
    for (unsigned i = 0; i < COMMAND_LIMIT; i++) {
        struct command *command = &commands[i];

        if (command->used && !command->exited && command->pid == pid) {
            command->exited = true;
            command->wait_status = wait_status;
            /* Reading its terminal now fails after the last byte. */
            close_fd(&command->files.terminal_end);
        }
    }
}

static bool is_starting(const struct command *command)
{
    return command->files.started >= 0;
}

static bool may_read(const struct source *source)
{
    return source->fd >= 0 && source->credit && port_has_room_for_output();
}

unsigned commands_poll(struct pollfd *waits)
{
    unsigned count = 0;

    for (unsigned i = 0; i < COMMAND_LIMIT; i++) {
        const struct command *command = &commands[i];

        if (!command->used)
            continue;
        if (is_starting(command)) {
            waits[count++] = (struct pollfd){.fd = command->files.started, .events = POLLIN};
            continue;
        }
        for (unsigned s = 0; s < 2; s++) {
            if (may_read(&command->sources[s]))
                waits[count++] = (struct pollfd){.fd = command->sources[s].fd, .events = POLLIN};
        }
        if (command->input_held && command->files.input >= 0)
            waits[count++] = (struct pollfd){.fd = command->files.input, .events = POLLOUT};
    }
    return count;
}

/* Answer the request when the program runs, or could not be started. */
static void settle_start(struct command *command)
{
    struct spawn_failure failure;
    ssize_t got = read(command->files.started, &failure, sizeof(failure));

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got == (ssize_t)sizeof(failure)) {
        send_failure(command->id, failure.error, "%s: %s", spawn_step_name(failure.step),
                     strerror(failure.error));
        release(command);
        return;
    }
    close_fd(&command->files.started);
    send_done(command->id);
}

/* Returns whether something was read. */
static bool read_source(struct command *command, unsigned index)
{
    struct source *source = &command->sources[index];
    size_t room = source->credit < OUTPUT_BYTES ? source->credit : OUTPUT_BYTES;
    ssize_t got;

    if (!may_read(source))
        return false;
    got = read(source->fd, output_buffer(), room);
    if (got > 0) {
        source->credit -= (uint32_t)got;
        send_output(command->id, index ? STREAM_ERROR : STREAM_OUTPUT, (uint32_t)got);
        return true;
    }
    if (got < 0 && (errno == EINTR || (errno == EAGAIN && !command->exited)))
        return false;
    source->fd = -1; /* `files` has it until the end: input may use the same one */
    return false;
}

static void write_input(struct command *command)
{
    static const uint8_t end = END_OF_FILE;
    ssize_t put;

    if (command->files.input < 0)
        return;
    if (command->input_held) {
        put = write(command->files.input, command->input, command->input_held);
        if (put < 0 && errno != EAGAIN && errno != EINTR) {
            /* Nobody reads it any more. */
            put = command->input_held;
        }
        if (put <= 0)
            return;
        command->input_held -= (uint32_t)put;
        memmove(command->input, command->input + put, command->input_held);
        send_input_credit(command->id, (uint32_t)put);
    }
    if (!command->input_ended || command->input_held)
        return;
    if (command->files.terminal_end >= 0 && write(command->files.input, &end, 1) != 1)
        return;
    close_fd(&command->files.input);
}

static void turn(struct command *command)
{
    if (!port_has_room_for_answer())
        return;
    if (is_starting(command))
        settle_start(command);
    if (!command->used || is_starting(command))
        return;
    if (!command->exited)
        write_input(command);
    for (unsigned s = 0; s < 2; s++) {
        while (read_source(command, s)) {
        }
    }
    if (!command->exited || !port_has_room_for_answer())
        return;
    if (command->sources[0].fd < 0 && command->sources[1].fd < 0) {
        send_ended(command->id, command->wait_status);
        release(command);
    }
}

void commands_turn(void)
{
    for (unsigned i = 0; i < COMMAND_LIMIT; i++) {
        struct command *command = &commands[i];

        if (command->used && !command->disowned)
            turn(command);
        else if (command->used && command->exited)
            release(command);
    }
}

void commands_hang_up(void)
{
    for (unsigned i = 0; i < COMMAND_LIMIT; i++) {
        struct command *command = &commands[i];

        if (!command->used || command->disowned)
            continue;
        command->disowned = true;
        if (!command->exited)
            signal_group(command->pid, SIGHUP);
        close_fd(&command->files.started);
        close_fd(&command->files.input);
        close_fd(&command->files.output);
        close_fd(&command->files.error);
        command->sources[0].fd = command->sources[1].fd = -1;
    }
}

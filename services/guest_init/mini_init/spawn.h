/*
 * Starts a program, with a terminal or with pipes. Must not know the channel.
 */
#ifndef MINI_INIT_SPAWN_H
#define MINI_INIT_SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct program {
    char **arguments;   /* ended by NULL, as of execve */
    char **environment; /* likewise */
    const char *directory;
    bool terminal;
    uint16_t rows, columns;
    uid_t uid;
    gid_t gid;
    const gid_t *groups;
    size_t group_count;
};

/* Our ends; all are non-blocking, and negative where there is none. With a terminal, input and
 * output are two descriptors of its master. */
struct spawned {
    int started; /* a struct spawn_failure is read here, or the end of file when the program runs */
    int input, output, error;
    int terminal_end; /* the program's end of its terminal: while it is open, reading goes on */
};

enum spawn_step { SPAWN_TERMINAL, SPAWN_USER, SPAWN_DIRECTORY, SPAWN_PROGRAM };

struct spawn_failure {
    int error; /* errno */
    enum spawn_step step;
};

/* Start a program in a session of its own; returns its process, or -1 with errno. */
pid_t spawn(const struct program *program, struct spawned *spawned);
/* Name what failed, for people. */
const char *spawn_step_name(enum spawn_step step);

#endif

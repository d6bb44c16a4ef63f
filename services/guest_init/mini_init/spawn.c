/*
 * Starts programs.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "processes.h"
#include "spawn.h"

/* The ends of the child. */
struct ends {
    int input, output, error, started;
};

static void close_all(const int *fds, size_t count)
{
    int error = errno;

    for (size_t i = 0; i < count; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    errno = error;
}

static bool open_terminal(const struct program *program, struct spawned *ours, struct ends *theirs)
{
    struct winsize size = {.ws_row = program->rows, .ws_col = program->columns};
    int unlocked = 0;

    ours->output = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (ours->output < 0 || ioctl(ours->output, TIOCSPTLCK, &unlocked) ||
        ioctl(ours->output, TIOCSWINSZ, &size))
        return false;
    ours->input = fcntl(ours->output, F_DUPFD_CLOEXEC, 0);
    ours->terminal_end = ioctl(ours->output, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    theirs->input = theirs->output = theirs->error = ours->terminal_end;
    return ours->input >= 0 && ours->terminal_end >= 0;
}

static bool open_pipe(int *read_end, int *write_end, int *our_end)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        return false;
    *read_end = ends[0];
    *write_end = ends[1];
    return !fcntl(*our_end, F_SETFL, O_NONBLOCK);
}

static bool open_pipes(struct spawned *ours, struct ends *theirs)
{
    return open_pipe(&theirs->input, &ours->input, &ours->input) &&
           open_pipe(&ours->output, &theirs->output, &ours->output) &&
           open_pipe(&ours->error, &theirs->error, &ours->error);
}

static _Noreturn void fail(const struct ends *ends, enum spawn_step step)
{
    struct spawn_failure failure = {errno, step};

    _exit(write(ends->started, &failure, sizeof(failure)) == (ssize_t)sizeof(failure) ? 127 : 126);
}

/* In the child. The kernel closes everything else when the program begins. */
static _Noreturn void begin(const struct program *program, const struct ends *ends)
{
    if (setsid() < 0 || (program->terminal && ioctl(ends->input, TIOCSCTTY, 0)) ||
        dup2(ends->input, STDIN_FILENO) < 0 || dup2(ends->output, STDOUT_FILENO) < 0 ||
        dup2(ends->error, STDERR_FILENO) < 0)
        fail(ends, SPAWN_TERMINAL);
    if (program->terminal && fchown(STDIN_FILENO, program->uid, (gid_t)-1))
        fail(ends, SPAWN_TERMINAL);
    if (setgroups(program->group_count, program->groups) || setgid(program->gid) ||
        setuid(program->uid))
        fail(ends, SPAWN_USER);
    if (chdir(program->directory))
        fail(ends, SPAWN_DIRECTORY);
    environ = program->environment;
    (void)execvp(program->arguments[0], program->arguments);
    fail(ends, SPAWN_PROGRAM);
}

pid_t spawn(const struct program *program, struct spawned *spawned)
{
    struct spawned ours = {-1, -1, -1, -1, -1};
    struct ends theirs = {-1, -1, -1, -1};
    pid_t pid = -1;

    if (open_pipe(&ours.started, &theirs.started, &ours.started) &&
        (program->terminal ? open_terminal(program, &ours, &theirs) : open_pipes(&ours, &theirs)))
        pid = process_fork();
    if (!pid)
        begin(program, &theirs);
    if (!program->terminal)
        close_all((const int[]){theirs.input, theirs.output, theirs.error}, 3);
    close_all(&theirs.started, 1);
    if (pid < 0) {
        close_all(
            (const int[]){ours.started, ours.input, ours.output, ours.error, ours.terminal_end}, 5);
        return -1;
    }
    *spawned = ours;
    return pid;
}

const char *spawn_step_name(enum spawn_step step)
{
    static const char *const names[] = {
        [SPAWN_TERMINAL] = "its streams",
        [SPAWN_USER] = "its user",
        [SPAWN_DIRECTORY] = "its working directory",
        [SPAWN_PROGRAM] = "the program",
    };

    return names[step];
}

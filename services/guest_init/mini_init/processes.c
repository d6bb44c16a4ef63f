/*
 * Makes processes.
 */
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "processes.h"

pid_t process_fork(void)
{
    pid_t pid = fork();

    if (!pid) {
        sigset_t none;

        sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)signal(SIGPIPE, SIG_DFL);
    }
    return pid;
}

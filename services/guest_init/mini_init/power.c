/*
 * Powers off, in bounded time.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "mounts.h"
#include "power.h"
#include "processes.h"

#define GRACE_NS 2000000000ull   /* from SIGTERM to SIGKILL */
#define UNMOUNT_NS 5000000000ull /* a device that does not answer holds up unmounting */

/* Reap until no process is left, or one that is named has ended; false when the time is over. */
static bool reap(pid_t pid, uint64_t limit_ns)
{
    const struct timespec step = {.tv_nsec = 5000000};
    uint64_t end_ns = boot_time_ns() + limit_ns;

    while (boot_time_ns() < end_ns) {
        pid_t reaped = waitpid(-1, NULL, WNOHANG);

        if (reaped < 0 && errno == ECHILD)
            return true;
        if (reaped > 0 && reaped == pid)
            return true;
        if (!reaped)
            (void)nanosleep(&step, NULL);
    }
    return false;
}

_Noreturn void power_off(void)
{
    pid_t unmounting;

    (void)kill(-1, SIGTERM);
    (void)kill(-1, SIGCONT); /* a stopped process must see it */
    if (!reap(0, GRACE_NS)) {
        (void)kill(-1, SIGKILL);
        (void)reap(0, GRACE_NS);
    }
    unmounting = process_fork();
    if (!unmounting) {
        sync();
        mounts_end_all();
        sync();
        _exit(0);
    }
    if (unmounting > 0 && !reap(unmounting, UNMOUNT_NS))
        say("unmounting takes too long; powering off without it");
    (void)reboot(RB_POWER_OFF);
    for (;;)
        (void)pause();
}

/*
 * mini_init: process 1 of a Linux guest. It mounts what every guest has, reports what the kernel
 * publishes, and does what the host asks for; protos/porthole/guest/v1/mini_init.proto has how. It
 * never ends: the kernel would panic.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "commands.h"
#include "frames.h"
#include "jobs.h"
#include "kernel.h"
#include "listening.h"
#include "log.h"
#include "modules.h"
#include "mounts.h"
#include "network.h"
#include "port.h"
#include "power.h"
#include "requests.h"

#define LOOK_MS 2        /* between two looks for the port, while the guest starts */
#define LOOK_LATER_MS 50 /* and afterwards */
#define START_NS 5000000000ull

/* A descriptor below 3 that is free would be taken for a standard stream. */
static void fill_standard_streams(void)
{
    int fd = open("/dev/null", O_RDWR);

    while (fd >= 0 && fd < STDERR_FILENO)
        fd = dup(fd);
    if (fd > STDERR_FILENO)
        close(fd);
}

/* All signals are read from a descriptor, so that none ends or interrupts anything. */
static int receive_signals(void)
{
    sigset_t all;

    sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del becomes SIGINT */
    return signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void reap(void)
{
    int wait_status;

    for (pid_t pid = waitpid(-1, &wait_status, WNOHANG); pid > 0;
         pid = waitpid(-1, &wait_status, WNOHANG))
        commands_reaped(pid, wait_status);
}

/* Returns whether a signal asks for the end of the guest, as programs of other inits send it. */
static bool take_signals(int fd)
{
    struct signalfd_siginfo taken;
    bool end = false;

    while (read(fd, &taken, sizeof(taken)) == (ssize_t)sizeof(taken)) {
        int number = (int)taken.ssi_signo;

        end = end || number == SIGINT || number == SIGTERM || number == SIGUSR1 ||
              number == SIGUSR2 || number == SIGPWR;
    }
    reap();
    return end;
}

static void take_requests(struct capabilities *capabilities)
{
    const uint8_t *message;
    uint32_t length;

    while (port_has_room_for_answer() && !requests_want_end() && port_take(&message, &length))
        request_carry_out(message, length, capabilities);
    length = port_take_too_long();
    if (length)
        send_failure(0, EMSGSIZE, "a message of %u bytes; it must be at most %u", length,
                     FRAME_MESSAGE_LIMIT);
}

static void report_listening(void)
{
    const struct listening *news = port_has_room_for_answer() ? listening_look() : NULL;

    if (news)
        send_listening(news);
}

/* Send what is queued, for a second at most; then end. */
static _Noreturn void end(void)
{
    uint64_t end_ns = boot_time_ns() + 1000000000u;

    for (struct pollfd wait = port_poll(); wait.events & POLLOUT && boot_time_ns() < end_ns;
         wait = port_poll()) {
        wait.events = POLLOUT;
        if (poll(&wait, 1, 100) > 0 && !port_turn(wait.revents))
            break;
    }
    power_off();
}

static int timeout_ms(const struct capabilities *capabilities)
{
    if (port_is_connected())
        return port_has_room_for_answer() ? listening_timeout_ms() : -1;
    return boot_time_ns() - capabilities->started_ns < START_NS ? LOOK_MS : LOOK_LATER_MS;
}

static void turn(int signals, struct capabilities *capabilities)
{
    struct pollfd waits[2 + JOB_LIMIT + COMMAND_POLLS];
    nfds_t count = 2;

    waits[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    waits[1] = port_poll();
    count += jobs_poll(waits + count);
    count += commands_poll(waits + count);
    (void)poll(waits, count, timeout_ms(capabilities));
    if (take_signals(signals))
        end();
    if (port_is_connected() && !port_turn(waits[1].revents)) {
        jobs_disown();
        commands_hang_up();
        listening_watch(false);
    }
    if (port_look()) {
        listening_watch(false);
        send_hello(0, capabilities);
    }
    take_requests(capabilities);
    report_listening();
    jobs_turn();
    commands_turn();
    if (requests_want_end())
        end();
    if (port_is_connected())
        (void)port_turn(0); /* what was queued in this turn */
}

int main(void)
{
    static struct capabilities capabilities;
    int signals;

    capabilities.started_ns = boot_time_ns();
    signals = receive_signals();
    (void)umask(022);
    mounts_make_first();
    fill_standard_streams();
    modules_load();
    kernel_read(&capabilities);
    capabilities.read_ns = boot_time_ns();
    job_start(0, loopback_job, NULL);
    for (;;)
        turn(signals, &capabilities);
}

/*
 * Runs jobs, and answers for them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "jobs.h"
#include "messages.h"
#include "port.h"
#include "processes.h"

struct job {
    bool running, disowned;
    uint32_t request_id;
    int fd; /* a pipe, to which its process writes the outcome */
};

static struct job jobs[JOB_LIMIT];

struct outcome outcome_of(int error, const char *format, ...)
{
    struct outcome outcome = {.error = error};
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(outcome.text, sizeof(outcome.text), format, arguments);
    va_end(arguments);
    return outcome;
}

static struct job *free_job(void)
{
    for (unsigned i = 0; i < JOB_LIMIT; i++) {
        if (!jobs[i].running)
            return &jobs[i];
    }
    return NULL;
}

void job_start(uint32_t request_id, struct outcome (*function)(const void *request),
               const void *request)
{
    struct job *job = free_job();
    int ends[2];
    pid_t pid;

    if (!job) {
        send_failure(request_id, EAGAIN, "%u requests are under way, which is the most", JOB_LIMIT);
        return;
    }
    if (pipe2(ends, O_CLOEXEC)) {
        send_failure(request_id, errno, "pipe2: %s", strerror(errno));
        return;
    }
    pid = process_fork();
    if (!pid) {
        struct outcome outcome = function(request);

        _exit(write(ends[1], &outcome, sizeof(outcome)) == (ssize_t)sizeof(outcome) ? 0 : 1);
    }
    close(ends[1]);
    if (pid < 0) {
        send_failure(request_id, errno, "fork: %s", strerror(errno));
        close(ends[0]);
        return;
    }
    (void)fcntl(ends[0], F_SETFL, O_NONBLOCK);
    *job = (struct job){.running = true, .request_id = request_id, .fd = ends[0]};
}

unsigned jobs_poll(struct pollfd *waits)
{
    unsigned count = 0;

    for (unsigned i = 0; i < JOB_LIMIT; i++) {
        if (jobs[i].running)
            waits[count++] = (struct pollfd){.fd = jobs[i].fd, .events = POLLIN};
    }
    return count;
}

static void answer(const struct job *job, const struct outcome *outcome, bool whole)
{
    if (job->disowned || !job->request_id)
        return;
    if (!whole)
        send_failure(job->request_id, EIO, "the process that carried it out was killed");
    else if (outcome->error)
        send_failure(job->request_id, outcome->error, "%s", outcome->text);
    else
        send_done(job->request_id);
}

void jobs_turn(void)
{
    for (unsigned i = 0; i < JOB_LIMIT && port_has_room_for_answer(); i++) {
        struct outcome outcome;
        ssize_t got;

        if (!jobs[i].running)
            continue;
        got = read(jobs[i].fd, &outcome, sizeof(outcome));
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        outcome.text[OUTCOME_TEXT_BYTES - 1] = '\0';
        answer(&jobs[i], &outcome, got == (ssize_t)sizeof(outcome));
        close(jobs[i].fd);
        jobs[i].running = false;
    }
}

void jobs_disown(void)
{
    for (unsigned i = 0; i < JOB_LIMIT; i++)
        jobs[i].disowned = true;
}

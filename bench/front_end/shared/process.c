/* This process: its clocks, its memory, and its end with a message. Every part uses it.
 *
 * Must not know what is measured.
 */
#include "process.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void *allocate(size_t count, size_t bytes)
{
    void *memory = calloc(count ? count : 1, bytes);

    if (!memory)
        die("no memory for %zu times %zu bytes", count, bytes);
    return memory;
}

void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

/* utime and stime of proc(5). */
double cpu_s_of(const int *pids, unsigned count)
{
    unsigned long long ticks = 0, user, system;
    char path[64], line[1024], *rest;

    for (unsigned i = 0; i < count; i++) {
        FILE *file;

        snprintf(path, sizeof path, "/proc/%d/stat", pids[i]);
        file = fopen(path, "r");
        if (!file || !fgets(line, sizeof line, file) || !(rest = strrchr(line, ')')) ||
            sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user,
                   &system) != 2)
            die("%s: cannot be read", path);
        fclose(file);
        ticks += user + system;
    }
    return (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

double own_cpu_s(void)
{
    struct timespec used;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

void sleep_until(uint64_t ns)
{
    struct timespec until = {(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0)
        ;
}

/*
 * Reads /proc/net/tcp and tcp6 (proc_net_tcp of the kernel's documentation).
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "files.h"
#include "listening.h"

#define PERIOD_NS 500000000ull
#define NS_PER_MS 1000000ull
#define TABLE_BYTES 65536u /* listening sockets come first, in lines of 150 characters */
#define LISTEN_STATE 0x0aul

static bool watched, known;
static uint64_t next_ns;

/* Keep the lowest ports, in order. */
static void ports_add(struct ports *ports, uint32_t number)
{
    uint32_t at = 0;

    while (at < ports->count && ports->numbers[at] < number)
        at++;
    if (at == LISTENING_LIMIT || (at < ports->count && ports->numbers[at] == number))
        return;
    if (ports->count < LISTENING_LIMIT)
        ports->count++;
    memmove(ports->numbers + at + 1, ports->numbers + at,
            (ports->count - at - 1) * sizeof(*ports->numbers));
    ports->numbers[at] = number;
}

/* Take a line, "sl: ADDRESS:PORT REMOTE:PORT STATE …" in hexadecimal. Returns whether it is one of
 * a socket that listens. */
static bool take_line(char *line, struct ports *ports)
{
    char *save = NULL, *colon;
    char *number = strtok_r(line, " ", &save);
    char *local = number ? strtok_r(NULL, " ", &save) : NULL;
    char *remote = local ? strtok_r(NULL, " ", &save) : NULL;
    char *state = remote ? strtok_r(NULL, " ", &save) : NULL;
    unsigned long port;

    if (!state || strtoul(state, NULL, 16) != LISTEN_STATE)
        return false;
    colon = strchr(local, ':');
    if (!colon || strspn(local, "0") != (size_t)(colon - local))
        return true; /* it listens on one address */
    port = strtoul(colon + 1, NULL, 16);
    if (port > 0 && port <= UINT16_MAX)
        ports_add(ports, (uint32_t)port);
    return true;
}

static void read_table(const char *root, const char *name, struct ports *ports)
{
    static char text[TABLE_BYTES + 1];
    char path[PATH_BYTES], *save = NULL, *line;
    ssize_t length;

    ports->count = 0;
    if (!path_join(path, root, "/proc/net", name))
        return;
    length = file_read(path, text, TABLE_BYTES);
    if (length <= 0)
        return;
    text[length] = '\0';
    line = strtok_r(text, "\n", &save); /* the heading */
    while (line) {
        line = strtok_r(NULL, "\n", &save);
        if (line && !take_line(line, ports))
            return;
    }
}

void listening_read(const char *root, struct listening *listening)
{
    read_table(root, "tcp", &listening->ipv4);
    read_table(root, "tcp6", &listening->ipv6);
}

static bool ports_equal(const struct ports *one, const struct ports *other)
{
    return one->count == other->count &&
           !memcmp(one->numbers, other->numbers, one->count * sizeof(*one->numbers));
}

void listening_watch(bool on)
{
    watched = on;
    known = false;
    next_ns = 0;
}

int listening_timeout_ms(void)
{
    uint64_t now_ns = boot_time_ns();

    if (!watched)
        return -1;
    return now_ns < next_ns ? (int)((next_ns - now_ns) / NS_PER_MS) + 1 : 0;
}

const struct listening *listening_look(void)
{
    static struct listening last, now;

    if (!watched || boot_time_ns() < next_ns)
        return NULL;
    next_ns = boot_time_ns() + PERIOD_NS;
    listening_read("", &now);
    if (known && ports_equal(&now.ipv4, &last.ipv4) && ports_equal(&now.ipv6, &last.ipv6))
        return NULL;
    known = true;
    last = now;
    return &last;
}

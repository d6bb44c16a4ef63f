/*
 * The TCP ports on which programs of the guest listen, for every address of the guest. The kernel
 * has no event for listen(2), so they are looked for from time to time, while a host watches. Must
 * not know messages.
 */
#ifndef MINI_INIT_LISTENING_H
#define MINI_INIT_LISTENING_H

#include <stdbool.h>
#include <stdint.h>

#define LISTENING_LIMIT 256u /* ports of each kind, the lowest */

struct ports {
    uint32_t count;
    uint32_t numbers[LISTENING_LIMIT]; /* in ascending order, each once */
};

struct listening {
    struct ports ipv4, ipv6;
};

/* Read what is listened on now from the files below a root, which is empty but for tests. */
void listening_read(const char *root, struct listening *listening);
/* Begin to watch, with the next look; or end. */
void listening_watch(bool on);
/* How long until the next look; -1: nobody watches. */
int listening_timeout_ms(void);
/* Look, if it is time. Returns what is listened on if that has changed, or is the first look; else
 * NULL. */
const struct listening *listening_look(void);

#endif

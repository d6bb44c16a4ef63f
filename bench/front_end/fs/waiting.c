/* Waiting for a device: by polling, or asleep until it interrupts.
 *
 * Must not know the requests that are waited for.
 */
#include "waiting.h"

#include <poll.h>
#include <stdint.h>

#include "options.h"
#include "process.h"
#include "vhost_user.h"

enum { LOOKS_BETWEEN_CLOCKS = 1 << 16 };

void await_used(struct ring *const *rings, unsigned count, bool polling)
{
    struct pollfd fds[MAX_SOCKETS * MAX_QUEUES];
    uint64_t begin_ns = now_ns();
    bool pending = false;

    while (polling && now_ns() - begin_ns < ANSWER_DEADLINE_NS)
        for (unsigned look = 0; look < LOOKS_BETWEEN_CLOCKS; look++)
            for (unsigned i = 0; i < count; i++)
                if (ring_has_used(rings[i]))
                    return;
    if (polling)
        die("the device has not answered for %llu s", ANSWER_DEADLINE_NS / 1000000000ull);
    for (;;) {
        /* Check the rings each time: an interrupt may be for a chain that was taken already. */
        for (unsigned i = 0; i < count; i++)
            pending |= !ring_arm(rings[i]);
        if (pending)
            break;
        for (unsigned i = 0; i < count; i++)
            fds[i] = (struct pollfd){.fd = rings[i]->call_fd, .events = POLLIN};
        if (poll(fds, count, (int)(ANSWER_DEADLINE_NS / 1000000)) <= 0)
            die("the device has not answered for %llu s", ANSWER_DEADLINE_NS / 1000000000ull);
        for (unsigned i = 0; i < count; i++)
            if (fds[i].revents)
                ring_took_interrupt(rings[i]);
    }
    for (unsigned i = 0; i < count; i++)
        ring_hush(rings[i]);
}

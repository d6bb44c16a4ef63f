/*
 * Acting as the guest's user: file system credentials of the calling thread; see credentials.py.
 */
#ifndef PORTHOLE_CREDENTIALS_H
#define PORTHOLE_CREDENTIALS_H

#include <stdbool.h>
#include <stdint.h>

struct ph_credentials {
    uint32_t uid; /* the thread's own, to go back to */
    uint32_t gid;
    bool differ; /* from those that were assumed, or are not root's */
};

/* False when the kernel does not know such an id here; nothing has changed then. */
bool ph_credentials_assume(struct ph_credentials *own, uint32_t uid, uint32_t gid);
void ph_credentials_restore(const struct ph_credentials *own);

#endif

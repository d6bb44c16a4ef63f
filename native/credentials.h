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
    bool differ; /* whether there is anything to restore */
};

/* Act as a user, with CAP_DAC_OVERRIDE. False when the kernel has no such id here; then nothing has
 * changed. */
bool ph_credentials_assume(struct ph_credentials *own, uint32_t uid, uint32_t gid);
/* Act as the thread's own user again. */
void ph_credentials_restore(const struct ph_credentials *own);

#endif

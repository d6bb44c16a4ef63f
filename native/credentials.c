#include "credentials.h"

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY ((uint32_t)-1) /* not an id: asks for the present one */

static bool keep_dac_override(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &header, data))
        return false;
    data[0].effective |= 1u << CAP_DAC_OVERRIDE & data[0].permitted;
    return !syscall(SYS_capset, &header, data);
}

bool ph_credentials_assume(struct ph_credentials *own, uint32_t uid, uint32_t gid)
{
    *own = (struct ph_credentials){.uid = geteuid(), .gid = getegid()};
    own->differ = uid || own->uid || gid != own->gid;
    if (!own->differ)
        return true;
    setfsgid(gid);
    setfsuid(uid);
    /* Neither call reports failure, so ask which ids the thread has now. */
    if ((uint32_t)setfsgid(NOBODY) != gid || (uint32_t)setfsuid(NOBODY) != uid ||
        (uid && !keep_dac_override())) {
        ph_credentials_restore(own);
        return false;
    }
    return true;
}

/* The user comes first: that brings the capabilities back. */
void ph_credentials_restore(const struct ph_credentials *own)
{
    if (!own->differ)
        return;
    setfsuid(own->uid);
    setfsgid(own->gid);
}

/*
 * Reads what this kernel is and publishes.
 */
#include <linux/seccomp.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "files.h"
#include "kernel.h"

#define ACTIONS_FILE "/proc/sys/kernel/seccomp/actions_avail"

/* As services/guest_init/seccomp.py: the kernel's list decides, without one a system call. */
static bool has_user_notification(void)
{
    char words[1024], *save = NULL;
    ssize_t length = file_read(ACTIONS_FILE, words, sizeof(words) - 1);
    struct seccomp_notif_sizes sizes = {0};

    if (length < 0)
        return !syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) && sizes.seccomp_notif;
    words[length] = '\0';
    for (char *word = strtok_r(words, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
        if (!strcmp(word, "user_notif"))
            return true;
    }
    return false;
}

void kernel_read(struct capabilities *capabilities)
{
    static struct utsname names;

    capabilities->kernel_release = uname(&names) ? "" : names.release;
    capabilities->pool = pool_read("");
    capabilities->seccomp_user_notification = has_user_notification();
}

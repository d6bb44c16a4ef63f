/*
 * Loads modules.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"
#include "log.h"
#include "modules.h"

#define MODULES_DIR "/modules"

static void load(const char *name)
{
    char path[PATH_BYTES];
    int fd;

    if (!path_join(path, MODULES_DIR "/", name, ""))
        return;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
        say("module %s is not loaded: %s", name, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void modules_load(void)
{
    char names[8192], *save = NULL;
    ssize_t length = file_read(MODULES_DIR "/order", names, sizeof(names) - 1);

    if (length < 0)
        return;
    names[length] = '\0';
    for (char *name = strtok_r(names, "\n", &save); name; name = strtok_r(NULL, "\n", &save))
        load(name);
}

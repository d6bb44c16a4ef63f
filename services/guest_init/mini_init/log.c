/*
 * Writes lines to the kernel's log.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

void say(const char *format, ...)
{
    static const char prefix[] = "<6>mini_init: ";
    char line[400];
    va_list arguments;
    int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return;
    memcpy(line, prefix, sizeof(prefix));
    va_start(arguments, format);
    (void)vsnprintf(line + sizeof(prefix) - 1, sizeof(line) - sizeof(prefix) + 1, format,
                    arguments);
    va_end(arguments);
    if (write(fd, line, strlen(line)) < 0) {
        /* There is nobody left to say it to. */
    }
    close(fd);
}

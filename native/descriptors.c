#include "descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

bool ph_descriptors_init(struct ph_descriptors *descriptors, int first_unusable)
{
    descriptors->first_unusable = first_unusable;
    descriptors->proc_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return descriptors->proc_fd >= 0;
}

void ph_descriptors_free(struct ph_descriptors *descriptors)
{
    close(descriptors->proc_fd);
}

bool ph_is_crowded(const struct ph_descriptors *descriptors, int fd)
{
    return fd >= descriptors->first_unusable - descriptors->first_unusable / 8;
}

bool ph_is_for_files(const struct ph_descriptors *descriptors, int fd)
{
    return fd < descriptors->first_unusable - descriptors->first_unusable / 32;
}

int ph_claim(const struct ph_descriptors *descriptors, int fd)
{
    if (fd < descriptors->first_unusable)
        return fd;
    close(fd);
    errno = EMFILE;
    return -1;
}

bool ph_is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM;
}

int ph_open_via_proc(const struct ph_descriptors *descriptors, int fd, int flags)
{
    char room[12], *name = &room[sizeof(room) - 1];

    *name = '\0';
    do
        *--name = (char)('0' + fd % 10);
    while (fd /= 10);
    return openat(descriptors->proc_fd, name, flags | O_CLOEXEC);
}

/*
 * The status of a file, with the mount of the host through which it was reached: together they tell
 * files apart. Must not know nodes or requests.
 */
#ifndef PORTHOLE_STATUS_H
#define PORTHOLE_STATUS_H

#include <stdint.h>
#include <sys/stat.h>

struct ph_status {
    struct stat host;
    uint64_t mount;   /* 0: the kernel does not tell (before Linux 5.8) */
    uint64_t born_ns; /* since 1970; 0: the file system does not tell */
};

/* Each returns 0, or -1 with errno. Of a descriptor, or of a name that is not followed. */
int ph_status_of(int fd, struct ph_status *status);
int ph_status_at(int dir_fd, const char *name, struct ph_status *status);

#endif

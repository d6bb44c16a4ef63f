/*
 * Descriptors of this process: which numbers a file system device may use, and opening the file of
 * a descriptor again; see host_files/descriptors.py. Must not know what they stand for.
 */
#ifndef PORTHOLE_DESCRIPTORS_H
#define PORTHOLE_DESCRIPTORS_H

#include <stdbool.h>

struct ph_descriptors {
    int proc_fd;        /* of /proc/self/fd */
    int first_unusable; /* numbers from here on are left to the rest of the process */
};

/* False when /proc/self/fd cannot be opened; then there is nothing to free. */
bool ph_descriptors_init(struct ph_descriptors *descriptors, int first_unusable);
void ph_descriptors_free(struct ph_descriptors *descriptors);
/* Whether a new descriptor's number says that few are left; the kernel gives the lowest one. */
bool ph_is_crowded(const struct ph_descriptors *descriptors, int fd);
/* Whether a descriptor of this number may be an open file: the last ones are left to nodes, without
 * which no other guest could look at a file. */
bool ph_is_for_files(const struct ph_descriptors *descriptors, int fd);
/* Returns `fd`, or -1 with errno if `fd` is -1. Closes a descriptor whose number is not usable, and
 * returns -1 with EMFILE. */
int ph_claim(const struct ph_descriptors *descriptors, int fd);
/* Whether an errno of opening a file says that something is used up, and nothing of the file. */
bool ph_is_shortage(int error);
/* Open the file of a descriptor again, with other flags, by its link in /proc/self/fd; returns -1
 * with errno on failure. volumes.h opens files that have no descriptor any more. */
int ph_open_via_proc(const struct ph_descriptors *descriptors, int fd, int flags);

#endif

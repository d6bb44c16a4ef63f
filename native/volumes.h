/*
 * Volumes: the files of one file system that are reached through one mount of the host. A file that
 * is seen through two mounts is in two volumes, because a mount decides what may be done with it
 * (read-only, nosuid, mapped ids).
 *
 * Owns how a file of a volume is opened again after its descriptor was closed, by
 * name_to_handle_at(2); see reopening.py. The kernel's file handle names an inode and its
 * generation, so it never leads to another file. From any thread. Must not know nodes or requests.
 */
#ifndef PORTHOLE_VOLUMES_H
#define PORTHOLE_VOLUMES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "descriptors.h"
#include "status.h"

struct file_handle;

struct ph_volume {
    uint64_t mount;
    uint64_t dev;
    uint64_t ino_mask; /* flipped in the inode numbers that are shown */
    atomic_int anchor; /* an ordinary descriptor of something on the mount; -1: none yet */
    /* The owner of the list guards the rest. */
    uint64_t nodes;
    struct ph_volume *next;
};

/* Returns NULL if there is none. */
struct ph_volume *ph_volume_find(struct ph_volume *volumes, const struct ph_status *status);
/* Returns the file's volume, which is added if it is new; NULL without memory. */
struct ph_volume *ph_volume_find_or_add(struct ph_volume **volumes, const struct ph_status *status);
/* Count one node less; true if it was the last, and the volume is out of the list, to be freed. */
bool ph_volume_leave(struct ph_volume **volumes, struct ph_volume *volume);
void ph_volume_free(struct ph_volume *volume);

/* Returns what ph_volume_reopen needs to open the file of a descriptor again, for the caller to
 * free; NULL if that would fail. */
struct file_handle *ph_volume_prepare(struct ph_volume *volume,
                                      const struct ph_descriptors *descriptors, int fd);
/* Open the file as an O_PATH descriptor, through the volume's mount; returns -1 with errno, ESTALE
 * when the file is gone. */
int ph_volume_reopen(const struct ph_volume *volume, const struct ph_descriptors *descriptors,
                     struct file_handle *with);
/* Whether both lead to one file; NULL leads to none. */
bool ph_is_same_file(const struct file_handle *a, const struct file_handle *b);

#endif

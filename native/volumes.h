/*
 * Volumes: the files of one file system that are reached through one mount of the host. A file that
 * is seen through two mounts is in two volumes, because a mount decides what may be done with it
 * (read-only, nosuid, mapped ids).
 *
 * Owns how a file of a volume is opened again by the kernel's file handle (name_to_handle_at(2)),
 * and whether the volume's handles are trusted; see volumes.py. A handle names an inode and its
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

enum ph_handles {
    PH_UNTRIED,
    PH_TRUSTED,
    PH_DISTRUSTED, /* there are none, or one led to no file although the file was there */
};

struct ph_volume {
    uint64_t mount;
    uint64_t dev;
    uint64_t ino_mask;  /* flipped in the inode numbers that are shown */
    atomic_int anchor;  /* an ordinary descriptor of something on the mount; -1: none yet */
    atomic_int handles; /* enum ph_handles */
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

/* Whether files can be opened again by their handles; tried with the file of a descriptor if that
 * is not known yet. */
bool ph_volume_trusts_handles(struct ph_volume *volume, const struct ph_descriptors *descriptors,
                              int fd);
/* From now on use no handles of this volume. */
void ph_volume_distrust_handles(struct ph_volume *volume);
/* Returns the handle of the file of a descriptor for ph_volume_reopen, for the caller to free; NULL
 * if handles are not trusted. */
struct file_handle *ph_volume_prepare(struct ph_volume *volume,
                                      const struct ph_descriptors *descriptors, int fd);
/* Open the file as an O_PATH descriptor, through the volume's mount; returns -1 with errno, ESTALE
 * when the handle leads to no file, or is NULL, or is not trusted. */
int ph_volume_reopen(const struct ph_volume *volume, const struct ph_descriptors *descriptors,
                     struct file_handle *with);
/* Whether both lead to one file; NULL leads to none. */
bool ph_is_same_file(const struct file_handle *a, const struct file_handle *b);

#endif

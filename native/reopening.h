/*
 * Opening a file again after its descriptor was closed, by name_to_handle_at(2); see reopening.py.
 *
 * The kernel's file handle names an inode and its generation, so it never leads to another file.
 * From any thread. Must not know nodes or requests.
 */
#ifndef PORTHOLE_REOPENING_H
#define PORTHOLE_REOPENING_H

#include <stdbool.h>
#include <stdint.h>

#include "descriptors.h"

struct file_handle;
struct ph_anchor;

struct ph_reopener {
    const struct ph_descriptors *descriptors;
    struct ph_anchor *_Atomic anchors;
};

void ph_reopener_init(struct ph_reopener *reopener, const struct ph_descriptors *descriptors);
void ph_reopener_free(struct ph_reopener *reopener);
/* Returns what ph_reopener_reopen needs to open the file of a descriptor again, for the caller to
 * free; NULL if that would fail. `dev` is the device number of the file's file system. */
struct file_handle *ph_reopener_prepare(struct ph_reopener *reopener, int fd, uint64_t dev);
/* Open the file as an O_PATH descriptor; returns -1 with errno, ESTALE when the file is gone. */
int ph_reopener_reopen(struct ph_reopener *reopener, uint64_t dev, struct file_handle *with);
/* Whether both lead to one file; NULL leads to none. */
bool ph_is_same_file(const struct file_handle *a, const struct file_handle *b);

#endif

/*
 * Mounts: those that every guest has, those that the host asks for, and the root.
 */
#ifndef MINI_INIT_MOUNTS_H
#define MINI_INIT_MOUNTS_H

#include "jobs.h"

/* Mount proc, sysfs, devtmpfs, devpts, and file systems in memory on /tmp and /run. */
void mounts_make_first(void);

/* Jobs: carry out a MountRequest and an UnmountRequest. */
struct outcome mount_job(const void *request);
struct outcome unmount_job(const void *request);

/* Make a mount point the root of this process and of what it starts. When it fails, nothing has
 * changed. */
struct outcome enter_root(const char *path);

/* Unmount everything, the latest first; what is in use becomes read-only. */
void mounts_end_all(void);

#endif

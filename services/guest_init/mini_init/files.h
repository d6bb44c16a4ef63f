/*
 * Small files and paths. Must not know what is in them.
 */
#ifndef MINI_INIT_FILES_H
#define MINI_INIT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define PATH_BYTES 4096u

/* Write root + directory + "/" + name; without the slash if name is empty or has one. false: it is
 * too long. */
bool path_join(char path[PATH_BYTES], const char *root, const char *directory, const char *name);
/* Make a directory and its parents; 0, or the errno. An existing directory is no error. */
int path_make(const char *path, mode_t mode);

/* Read a file up to a limit; the number of bytes, or -1 with errno. */
ssize_t file_read(const char *path, char *text, size_t limit);
/* Write a file anew, through a file beside it; 0, or the errno. */
int file_write(const char *path, const char *text, size_t length);

#endif

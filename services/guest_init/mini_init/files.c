/*
 * Small files and paths.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"

bool path_join(char path[PATH_BYTES], const char *root, const char *directory, const char *name)
{
    const char *slash = *name && *name != '/' ? "/" : "";
    int length = snprintf(path, PATH_BYTES, "%s%s%s%s", root, directory, slash, name);

    return length >= 0 && length < (int)PATH_BYTES;
}

int path_make(const char *path, mode_t mode)
{
    char part[PATH_BYTES];
    size_t length = strlen(path);
    struct stat status;

    if (length >= sizeof(part))
        return ENAMETOOLONG;
    for (size_t i = 1; i <= length; i++) {
        if (i < length && path[i] != '/')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, mode) && errno != EEXIST) {
            int error = errno;

            /* A file system that takes no new names says so before it looks. */
            if (stat(part, &status) || !S_ISDIR(status.st_mode))
                return error;
        }
    }
    return stat(path, &status) ? errno : S_ISDIR(status.st_mode) ? 0 : ENOTDIR;
}

ssize_t file_read(const char *path, char *text, size_t limit)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    size_t length = 0;
    ssize_t got = 0;

    if (fd < 0)
        return -1;
    while (length < limit) {
        got = read(fd, text + length, limit - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    if (got < 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    close(fd);
    return (ssize_t)length;
}

int file_write(const char *path, const char *text, size_t length)
{
    char fresh[PATH_BYTES];
    int fd, error = 0;

    if (snprintf(fresh, sizeof(fresh), "%s.new", path) >= (int)sizeof(fresh))
        return ENAMETOOLONG;
    fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return errno;
    while (length && !error) {
        ssize_t put = write(fd, text, length);

        if (put >= 0) {
            text += put;
            length -= (size_t)put;
        } else if (errno != EINTR) {
            error = errno;
        }
    }
    close(fd);
    if (!error && rename(fresh, path))
        error = errno;
    if (error)
        (void)unlink(fresh);
    return error;
}

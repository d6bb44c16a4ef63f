/*
 * Reads the bounce pool: from sysfs, from the kernel's log, and, in device_tree.c, from the device
 * tree.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "device_tree.h"
#include "files.h"
#include "log.h"
#include "published.h"

#define VMBUS_DIR "/sys/bus/vmbus/drivers/hv_pci" /* drivers/pci/controller/pci-hyperv.c */
#define VIRTIO_DIR "/sys/bus/virtio"
#define ATTRIBUTE_LIMIT 4096u /* a sysfs attribute is at most one page */
#define LOG_RECORD_LIMIT 8192u

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The value of a digit; 16: it is none. */
static unsigned digit(char c)
{
    if (c >= '0' && c <= '9')
        return (unsigned)(c - '0');
    if (c >= 'a' && c <= 'f')
        return (unsigned)(c - 'a') + 10;
    if (c >= 'A' && c <= 'F')
        return (unsigned)(c - 'A') + 10;
    return 16;
}

bool pool_parse_number(const char *text, size_t length, uint64_t *number)
{
    const char *at = text, *end = text + length, *first;
    unsigned base = 10;

    *number = 0;
    while (at < end && is_space(*at))
        at++;
    if (at < end && *at == '+')
        at++;
    if (end - at >= 2 && at[0] == '0' && (at[1] | 0x20) == 'x') {
        base = 16;
        at += 2;
    } else if (at < end && *at == '0') {
        base = 8;
    }
    for (first = at; at < end && digit(*at) < base; at++) {
        if (__builtin_mul_overflow(*number, (uint64_t)base, number) ||
            __builtin_add_overflow(*number, (uint64_t)digit(*at), number))
            return false;
    }
    if (at == first)
        return false;
    while (at < end && is_space(*at))
        at++;
    return at == end;
}

bool pool_parse_log(const char *line, struct pool *pool)
{
    static const char mapped[] = "software IO TLB: mapped [mem 0x";
    const char *at = strstr(line, mapped);
    uint64_t base, end;

    /* The end is the first byte after the pool. */
    if (!at || sscanf(at + sizeof(mapped) - 1, "%" SCNx64 "-0x%" SCNx64 "]", &base, &end) != 2 ||
        !base || end <= base)
        return false;
    *pool = (struct pool){POOL_KERNEL_LOG, base, end - base};
    return true;
}

static bool read_number(const char *root, const char *directory, const char *name, uint64_t *number)
{
    char path[PATH_BYTES], text[ATTRIBUTE_LIMIT + 1];
    ssize_t length;

    if (!path_join(path, root, directory, name))
        return false;
    length = file_read(path, text, sizeof(text));
    if (length < 0) {
        if (errno != ENOENT)
            say("cannot read %s: %s; it counts as not published", path, strerror(errno));
        return false;
    }
    if (length <= (ssize_t)ATTRIBUTE_LIMIT && pool_parse_number(text, (size_t)length, number))
        return true;
    say("%s holds no 64-bit number; it counts as not published", path);
    return false;
}

static bool read_sysfs(const char *root, const char *directory, enum pool_source source,
                       struct pool *pool)
{
    uint64_t base, size_bytes;

    if (!read_number(root, directory, "swiotlb_base", &base) ||
        !read_number(root, directory, "swiotlb_size", &size_bytes) || !base || !size_bytes)
        return false;
    *pool = (struct pool){source, base, size_bytes};
    return true;
}

/* Whether the kernel bounces all DMA: else the pool in its log is not where the buffers are. */
static bool bounces_everything(const char *root)
{
    char path[PATH_BYTES], words[4096];
    ssize_t length;
    char *save = NULL;

    if (!path_join(path, root, "/proc", "cmdline"))
        return false;
    length = file_read(path, words, sizeof(words) - 1);
    if (length < 0)
        return false;
    words[length] = '\0';
    for (char *word = strtok_r(words, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
        if (!strncmp(word, "swiotlb=", 8) && strstr(word + 8, "force") &&
            !strstr(word + 8, "noforce"))
            return true;
    }
    return false;
}

static bool read_log(const char *root, struct pool *pool)
{
    char path[PATH_BYTES], record[LOG_RECORD_LIMIT + 1];
    bool found = false;
    int fd;

    if (!bounces_everything(root) || !path_join(path, root, "/dev", "kmsg"))
        return false;
    fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    while (!found) {
        ssize_t length = read(fd, record, LOG_RECORD_LIMIT);

        if (length < 0 && errno == EPIPE) /* records were overwritten meanwhile */
            continue;
        if (length <= 0)
            break;
        record[length] = '\0';
        /* "<facility and level>,…;text": only the kernel's facility is 0, levels go up to 7. */
        if (record[0] >= '0' && record[0] <= '7' && record[1] == ',')
            found = pool_parse_log(record, pool);
    }
    close(fd);
    return found;
}

struct pool pool_read(const char *root)
{
    struct pool pool = {POOL_NONE, 0, 0};

    if (read_sysfs(root, VMBUS_DIR, POOL_VMBUS, &pool) ||
        read_sysfs(root, VIRTIO_DIR, POOL_VIRTIO, &pool))
        return pool;
    if (device_tree_pool(root, &pool.base, &pool.size_bytes)) {
        pool.source = POOL_DEVICE_TREE;
        return pool;
    }
    (void)read_log(root, &pool);
    return pool;
}

/*
 * Reads pools in the device tree, as the kernel shows it in /proc/device-tree.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "device_tree.h"
#include "files.h"
#include "log.h"

#define RESERVED_DIR "/proc/device-tree/reserved-memory"
#define COMPATIBLE "restricted-dma-pool"
#define POOL_LIMIT 64u
#define CELL_BYTES 4u

struct range {
    uint64_t base, end;
};

static bool read_property(const char *directory, const char *node, const char *name, uint8_t *bytes,
                          size_t limit, size_t *length)
{
    char path[PATH_BYTES];
    ssize_t got;

    if (!path_join(path, directory, node, name))
        return false;
    got = file_read(path, (char *)bytes, limit);
    if (got < 0)
        return false;
    *length = (size_t)got;
    return true;
}

/* The number of cells of a number, from "#address-cells" or "#size-cells"; 0: neither 1 nor 2. */
static unsigned cells(const char *directory, const char *name)
{
    uint8_t bytes[CELL_BYTES + 1];
    size_t length;

    if (!read_property(directory, "", name, bytes, sizeof(bytes), &length) ||
        length != CELL_BYTES || bytes[0] || bytes[1] || bytes[2] || bytes[3] > 2)
        return 0;
    return bytes[3];
}

static uint64_t big_endian(const uint8_t *bytes, unsigned cell_count)
{
    uint64_t number = 0;

    for (unsigned i = 0; i < cell_count * CELL_BYTES; i++)
        number = number << 8 | bytes[i];
    return number;
}

static bool is_pool(const char *directory, const char *node)
{
    uint8_t names[256];
    size_t length;

    if (!read_property(directory, node, "/compatible", names, sizeof(names) - 1, &length))
        return false;
    names[length] = '\0';
    for (size_t at = 0; at < length; at += strlen((char *)names + at) + 1) {
        if (!strcmp((char *)names + at, COMPATIBLE))
            return true;
    }
    return false;
}

static bool read_range(const char *directory, const char *node, struct range *range)
{
    unsigned address_cells = cells(directory, "/#address-cells");
    unsigned size_cells = cells(directory, "/#size-cells");
    uint8_t reg[4 * CELL_BYTES + 1];
    uint64_t size_bytes;
    size_t length;

    if (!address_cells || !size_cells ||
        !read_property(directory, node, "/reg", reg, sizeof(reg), &length) ||
        length != (size_t)(address_cells + size_cells) * CELL_BYTES)
        return false;
    range->base = big_endian(reg, address_cells);
    size_bytes = big_endian(reg + (size_t)address_cells * CELL_BYTES, size_cells);
    return range->base && size_bytes &&
           !__builtin_add_overflow(range->base, size_bytes, &range->end);
}

/* Insert a range in ascending order. */
static void insert(struct range *ranges, unsigned count, struct range range)
{
    unsigned place = count;

    for (; place && ranges[place - 1].base > range.base; place--)
        ranges[place] = ranges[place - 1];
    ranges[place] = range;
}

static unsigned read_ranges(const char *directory, DIR *nodes, struct range *ranges)
{
    unsigned count = 0;

    for (struct dirent *entry = readdir(nodes); entry && count < POOL_LIMIT;
         entry = readdir(nodes)) {
        char node[PATH_BYTES];
        struct range range;

        if (entry->d_name[0] == '.' || !path_join(node, "/", entry->d_name, "") ||
            !is_pool(directory, node))
            continue;
        if (read_range(directory, node, &range))
            insert(ranges, count++, range);
        else
            say("the pool %s of the device tree has no range; it counts as not published",
                entry->d_name);
    }
    return count;
}

bool device_tree_pool(const char *root, uint64_t *base, uint64_t *size_bytes)
{
    struct range ranges[POOL_LIMIT];
    char directory[PATH_BYTES];
    unsigned count;
    DIR *nodes;

    if (!path_join(directory, root, RESERVED_DIR, ""))
        return false;
    nodes = opendir(directory);
    if (!nodes)
        return false;
    count = read_ranges(directory, nodes, ranges);
    closedir(nodes);
    if (!count)
        return false;
    for (unsigned i = 1; i < count; i++) {
        if (ranges[i].base != ranges[i - 1].end) {
            say("the pools of the device tree are not contiguous; they count as not published");
            return false;
        }
    }
    *base = ranges[0].base;
    *size_bytes = ranges[count - 1].end - ranges[0].base;
    return true;
}

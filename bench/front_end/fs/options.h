/* The parameters of a run, from the command line. */
#ifndef FRONT_END_OPTIONS_H
#define FRONT_END_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_QUEUES 8
#define MAX_DEPTH 1024
#define MAX_PIDS 16
#define MAX_SOCKETS 512

enum operation {
    OP_READ,
    OP_WRITE,
    OP_GETATTR,
    OP_LOOKUP,
    OP_OPEN,
    OP_CREATE,
    OP_LIST,
    OP_ATTACH,
    OP_WALK
};
enum target { TARGET_DEVICE, TARGET_FILE, TARGET_MEMORY };

struct options {
    const char *sockets[MAX_SOCKETS];
    unsigned socket_count, busy; /* devices that are attached, and how many of them are busy */
    enum operation operation;
    enum target target;
    unsigned depth, queues, ring_size, files;
    bool one_thread, sequential, scattered, polling;
    uint32_t block_bytes;
    uint64_t working_set_bytes, span_bytes, pool_bytes, ops, seed, without_features;
    const char *directory, *file;
    double seconds, warmup_s;
    int pids[MAX_PIDS];
    unsigned pid_count;
};

extern const char *const operation_names[];
void options_parse(struct options *options, int argc, char **argv);

#endif

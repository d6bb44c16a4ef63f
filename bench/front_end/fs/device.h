/* One device, attached and with its file system initialised. */
#ifndef FRONT_END_DEVICE_H
#define FRONT_END_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "options.h"
#include "pattern.h"
#include "ram.h"
#include "requests.h"
#include "ring.h"
#include "vhost_user.h"

#define MAX_FORGETS 64
#define NAME_BYTES 48

struct slot {
    struct queue *queue;
    struct request *requests; /* `parts` of them */
    unsigned state, pending, buffer;
    uint64_t start_ns, node, fh, choice;
    char name[NAME_BYTES];
};

struct queue {
    struct device *device;
    struct ring ring;
    struct slot *slots;
    uint64_t *pages; /* of all data buffers, `pages_each` for each */
    unsigned pages_each, *free_buffers, buffer_count, first_free, free_count;
    unsigned in_flight;
    struct random random;
    uint64_t position; /* of the next sequential operation, in blocks */
    uint8_t *written;  /* WRITE: whether a block of the file was */
};

struct device {
    const struct options *options;
    unsigned number;
    struct connection connection;
    struct ram ram;
    struct ring high_priority;
    struct request control, forgets[MAX_FORGETS], *free_forgets[MAX_FORGETS];
    unsigned free_forget_count;
    uint64_t *control_pages;
    pthread_mutex_t forget_mutex;
    struct queue queues[MAX_QUEUES];
    uint32_t minor, max_write_bytes, parts;
    uint64_t file_node, file_fh, directory_node, *nodes;
    uint64_t attach_ns;
};

void device_attach(struct device *device, const struct options *options, unsigned number);
void device_prepare(struct device *device);
/* Ask for the attributes of every file that was looked up, and check them. */
void device_look_again(struct device *device);
struct reply device_ask(struct device *device, uint32_t opcode, uint64_t node, const void *args,
                        uint32_t in_args, uint32_t out_args, uint32_t data_bytes);
void device_forget(struct device *device, const uint64_t *nodes, unsigned count, bool wait);
uint64_t device_verify_writes(struct device *device);
void file_name(char *name, unsigned number);

#endif

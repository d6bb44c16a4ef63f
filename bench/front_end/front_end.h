/* A vhost-user front-end that drives one virtio-fs device and measures it: what its parts share.
 *
 * Stands for QEMU and a Linux guest together: guest memory is a memfd, the rings and the buffers of
 * requests lie in a pool inside it, chains are laid out as fs/fuse/virtio_fs.c lays them out. It
 * must not know which device it drives: ours and virtiofsd get the same bytes.
 *
 * Sizes are in bytes, times in nanoseconds where a name ends in _ns. Places in guest memory are
 * offsets into the memfd (`at_`); the guest-physical address is RAM_GPA more.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u
#define SLOT_BYTES 2048u      /* of a swiotlb: what one mapping takes at least */
#define RAM_GPA 0x40000000ull /* not 0: an address is never mistaken for an offset */
#define POOL_AT (16ull << 20) /* the pool's place in guest memory */
#define ANSWER_DEADLINE_NS 60000000000ull
#define MAX_QUEUES 8
#define MAX_DEPTH 1024
#define MAX_PIDS 16
#define MAX_FORGETS 64
#define MAX_SOCKETS 512
#define NAME_BYTES 48

/* main.c */

uint64_t now_ns(void);
void *allocate(size_t count, size_t bytes);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* histogram.c */

#define HISTOGRAM_BUCKETS 2048 /* 32 to each power of two: within 3 % */

struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS], total, max_ns;
    double sum_ns;
};
void histogram_add(struct histogram *h, uint64_t ns);
void histogram_merge(struct histogram *into, const struct histogram *from);
uint64_t histogram_percentile(const struct histogram *h, double percent);

/* guest.c */

struct ram {
    int fd;
    uint8_t *base;
    uint64_t bytes;
    uint64_t pool_next, pool_end; /* what is left of the pool */
};

void ram_make(struct ram *ram, uint64_t pool_bytes);
void ram_free(struct ram *ram);
uint64_t ram_take(struct ram *ram, uint64_t bytes, uint64_t align);
void ram_touch(struct ram *ram, uint64_t at, uint64_t bytes);

uint64_t page_stamp(uint64_t seed, uint64_t page);
void stamp_page(uint8_t *page, uint64_t stamp);
bool page_has_stamp(const uint8_t *page, uint64_t stamp, bool whole);

struct random {
    uint64_t state;
};
uint64_t random_next(struct random *random);

/* vhost_user.c */

struct connection {
    int fd;
    const char *path;
    bool reply_ack;
    uint64_t features, protocol_features;
    uint64_t queues;
};

struct ring;
void connection_open(struct connection *c, const char *path, uint64_t without_features);
void connection_attach(struct connection *c, const struct ram *ram);
void connection_start_ring(struct connection *c, const struct ram *ram, const struct ring *ring);

#define F_INDIRECT_DESC (1ull << 28)
#define F_EVENT_IDX (1ull << 29)

/* ring.c: the driver's side of one split virtqueue */

#define MAX_DESCRIPTORS 520 /* 1 MiB in pages, and room for the fixed parts */

struct buffer {
    uint64_t at;
    uint32_t bytes;
};

struct chain { /* readable buffers first, as the standard wants */
    unsigned readable, writable;
    struct buffer buffers[MAX_DESCRIPTORS];
};

struct ring {
    struct ram *ram;
    unsigned index, size;
    bool indirect, event_idx;
    int kick_fd, call_fd;
    uint64_t at_desc, at_avail, at_used;
    uint64_t *at_tables; /* one indirect table for each head */
    void **owners;       /* who waits for the chain that starts at a head */
    uint16_t *next;      /* free list, and links of direct chains */
    uint16_t free_head, free_count;
    uint16_t avail_index, last_used;
    uint64_t kicks, interrupts;
};

void ring_make(struct ring *ring, struct ram *ram, unsigned index, unsigned size,
               uint64_t features);
bool ring_add(struct ring *ring, const struct chain *chain, void *owner);
void *ring_reap(struct ring *ring, uint32_t *written);
bool ring_has_used(const struct ring *ring);
void ring_hush(struct ring *ring);
bool ring_arm(struct ring *ring);
void ring_took_interrupt(struct ring *ring);
uint64_t ring_table_bytes(void);

/* requests.c: FUSE requests over a ring */

struct slot;

struct request {
    struct slot *slot; /* NULL for one that nobody waits for by slot */
    uint64_t at_in_header, at_in_args, at_out_header, at_out_args;
    const uint64_t *pages; /* data buffers of this request, when it has data */
    uint32_t page_bytes;   /* of each but the last */
    uint32_t opcode, data_bytes;
    uint64_t unique, offset; /* offset: in the file */
};

struct reply {
    int error;
    uint32_t bytes;
    const void *args;
};

enum direction { NO_DATA, DATA_IN, DATA_OUT };
#define NO_REPLY UINT32_MAX

void request_make(struct request *request, struct ram *ram, uint64_t number);
void *request_args(const struct request *request, const struct ram *ram);
void request_send(struct ring *ring, struct request *request, uint32_t opcode, uint64_t node,
                  uint32_t in_args, uint32_t out_args, enum direction direction);
struct reply request_reply(const struct request *request, const struct ram *ram, uint32_t written);

/* options.c */

enum operation { OP_READ, OP_WRITE, OP_GETATTR, OP_LOOKUP, OP_OPEN, OP_CREATE, OP_LIST, OP_ATTACH };
enum target { TARGET_DEVICE, TARGET_FILE, TARGET_MEMORY };

struct options {
    const char *sockets[MAX_SOCKETS];
    unsigned socket_count, busy; /* devices attached, and those of them that work */
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

/* device.c: one device, attached and with its file system initialised */

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
    pthread_mutex_t forget_lock;
    struct queue queues[MAX_QUEUES];
    uint32_t minor, max_write_bytes, parts;
    uint64_t file_node, file_fh, directory_node, *nodes;
    uint64_t attach_ns;
};

void device_attach(struct device *device, const struct options *options, unsigned number);
void device_prepare(struct device *device);
struct reply device_ask(struct device *device, uint32_t opcode, uint64_t node, const void *args,
                        uint32_t in_args, uint32_t out_args, uint32_t data_bytes);
void device_forget(struct device *device, const uint64_t *nodes, unsigned count, bool wait);
uint64_t device_verify_writes(struct device *device);
void file_name(char *name, unsigned number);

/* workload.c: one operation from its first request to its last reply; engine.c: many of them */

enum phase { PHASE_WARM, PHASE_TIMED, PHASE_OVER };

struct run {
    const struct options *options;
    _Atomic int phase;
    _Atomic int64_t budget; /* operations that may still begin, when they are limited */
};

struct worker {
    struct run *run;
    struct queue **queues;
    unsigned queue_count;
    struct histogram histogram;
    uint64_t ops, bytes, entries, checked_pages, busy_ns;
    uint64_t *listed;
};

void operation_begin(struct queue *queue, struct slot *slot);
bool operation_goes_on(struct worker *worker, struct request *request, struct reply reply);
void list_directory(struct worker *worker, struct device *device, bool timed);
void await_used(struct ring *const *rings, unsigned count, bool polling);
void *worker_run(void *worker);

/* floor.c: what no device can beat */
void floor_run(const struct options *options, struct worker *worker, double *seconds);

/* The command line. Owns defaults and bounds; must not know what is done with them. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "process.h"
#include "ram.h"
#include "ring.h"

const char *const operation_names[] = {"read",   "write", "getattr", "lookup", "open",
                                       "create", "list",  "attach",  "walk",   NULL};
static const char *const target_names[] = {"device", "file", "memory", NULL};

enum {
    SOCKET = 1,
    BUSY,
    OPERATION,
    TARGET,
    DEPTH,
    QUEUES,
    RING_SIZE,
    FILES,
    ONE_THREAD,
    SEQUENTIAL,
    SCATTERED,
    POLLING,
    BLOCK,
    WORKING_SET,
    SPAN,
    POOL_MIB,
    OPS,
    SEED,
    NO_INDIRECT,
    NO_EVENT_IDX,
    DIRECTORY,
    HOST_FILE,
    SECONDS,
    WARMUP,
    PID,
};

static const struct option table[] = {
    {"socket", 1, NULL, SOCKET},
    {"busy", 1, NULL, BUSY},
    {"operation", 1, NULL, OPERATION},
    {"target", 1, NULL, TARGET},
    {"depth", 1, NULL, DEPTH},
    {"queues", 1, NULL, QUEUES},
    {"ring-size", 1, NULL, RING_SIZE},
    {"files", 1, NULL, FILES},
    {"one-thread", 0, NULL, ONE_THREAD},
    {"sequential", 0, NULL, SEQUENTIAL},
    {"scattered", 0, NULL, SCATTERED},
    {"polling", 0, NULL, POLLING},
    {"block", 1, NULL, BLOCK},
    {"working-set", 1, NULL, WORKING_SET},
    {"span", 1, NULL, SPAN},
    {"pool-mib", 1, NULL, POOL_MIB},
    {"ops", 1, NULL, OPS},
    {"seed", 1, NULL, SEED},
    {"no-indirect", 0, NULL, NO_INDIRECT},
    {"no-event-idx", 0, NULL, NO_EVENT_IDX},
    {"directory", 1, NULL, DIRECTORY},
    {"file", 1, NULL, HOST_FILE},
    {"seconds", 1, NULL, SECONDS},
    {"warmup", 1, NULL, WARMUP},
    {"pid", 1, NULL, PID},
    {NULL, 0, NULL, 0},
};

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno || end == text || *end || *text == '-' || value < least || value > most)
        die("'%s' is not a number from %llu to %llu", text, (unsigned long long)least,
            (unsigned long long)most);
    return value;
}

static double duration(const char *text)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= 0 && value <= 3600))
        die("'%s' is not a time from 0 to 3600 s", text);
    return value;
}

static unsigned choice(const char *text, const char *const *names)
{
    for (unsigned i = 0; names[i]; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    die("'%s' is not one of the values of this option", text);
}

static void take(struct options *o, int option)
{
    switch (option) {
    case SOCKET:
        if (o->socket_count == MAX_SOCKETS)
            die("more than %u sockets", MAX_SOCKETS);
        o->sockets[o->socket_count++] = optarg;
        break;
    case BUSY:
        o->busy = (unsigned)number(optarg, 1, MAX_SOCKETS);
        break;
    case OPERATION:
        o->operation = choice(optarg, operation_names);
        break;
    case TARGET:
        o->target = choice(optarg, target_names);
        break;
    case DEPTH:
        o->depth = (unsigned)number(optarg, 1, MAX_DEPTH);
        break;
    case QUEUES:
        o->queues = (unsigned)number(optarg, 1, MAX_QUEUES);
        break;
    case RING_SIZE:
        o->ring_size = (unsigned)number(optarg, 2, 32768);
        break;
    case FILES:
        o->files = (unsigned)number(optarg, 1, 10000000);
        break;
    case ONE_THREAD:
        o->one_thread = true;
        break;
    case SEQUENTIAL:
        o->sequential = true;
        break;
    case SCATTERED:
        o->scattered = true;
        break;
    case POLLING:
        o->polling = true;
        break;
    case BLOCK:
        o->block_bytes = (uint32_t)number(optarg, PAGE_BYTES, 2 << 20);
        break;
    case WORKING_SET:
        o->working_set_bytes = number(optarg, PAGE_BYTES, 1ull << 40);
        break;
    case SPAN:
        o->span_bytes = number(optarg, 0, 1ull << 32);
        break;
    case POOL_MIB:
        o->pool_bytes = number(optarg, 2, 2048) << 20;
        break;
    case OPS:
        o->ops = number(optarg, 1, UINT32_MAX);
        break;
    case SEED:
        o->seed = number(optarg, 0, UINT32_MAX);
        break;
    case NO_INDIRECT:
        o->without_features |= F_INDIRECT_DESC;
        break;
    case NO_EVENT_IDX:
        o->without_features |= F_EVENT_IDX;
        break;
    case DIRECTORY:
        o->directory = optarg;
        break;
    case HOST_FILE:
        o->file = optarg;
        break;
    case SECONDS:
        o->seconds = duration(optarg);
        break;
    case WARMUP:
        o->warmup_s = duration(optarg);
        break;
    case PID:
        if (o->pid_count == MAX_PIDS)
            die("more than %u processes", MAX_PIDS);
        o->pids[o->pid_count++] = (int)number(optarg, 1, INT32_MAX);
        break;
    default:
        die("see docs/benchmarks/README.md");
    }
}

void options_parse(struct options *options, int argc, char **argv)
{
    int option;

    *options = (struct options){
        .busy = 1,
        .depth = 1,
        .queues = 1,
        .ring_size = 128,
        .files = 1000,
        .block_bytes = 4096,
        .working_set_bytes = 64 << 20,
        .pool_bytes = 128 << 20,
        .directory = "files",
        .file = "data.bin",
        .seconds = 1,
        .warmup_s = 0.2,
        .seed = 1,
    };
    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1)
        take(options, option);
    if (optind < argc)
        die("unexpected argument '%s'", argv[optind]);
    if (options->target == TARGET_DEVICE && options->socket_count == 0)
        die("give a --socket");
    if (options->busy > options->socket_count)
        options->busy = options->socket_count;
    if (options->block_bytes & (options->block_bytes - 1))
        die("a block of %u bytes is not a power of two", options->block_bytes);
    if (options->ring_size & (options->ring_size - 1))
        die("a ring of %u entries is not a power of two", options->ring_size);
    if (options->working_set_bytes % options->block_bytes)
        die("a working set of %llu bytes is not a multiple of the block size",
            (unsigned long long)options->working_set_bytes);
    if (options->operation == OP_LIST && (options->queues > 1 || options->depth > 1))
        die("the operation list takes one queue and a depth of 1");
}

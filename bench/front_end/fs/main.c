/* A vhost-user front-end that drives one workload against virtio-fs devices, and prints what was
 * measured as one JSON object.
 *
 * Stands for QEMU and a Linux guest together: guest memory is a memfd, the rings and the buffers of
 * requests lie in a pool inside it, chains are laid out as fs/fuse/virtio_fs.c lays them out. It
 * must not know which device it drives: ours and virtiofsd get the same bytes.
 *
 * This file owns the order of a run: attach, prepare, warm up, measure, verify, print. Sizes are in
 * bytes, times in nanoseconds where a name ends in _ns.
 */

#include <stdio.h>
#include <stdlib.h>

#include "device.h"
#include "engine.h"
#include "floor.h"
#include "histogram.h"
#include "process.h"
#include "worker.h"

struct figures {
    double seconds, device_cpu_s, own_cpu_s;
};

static unsigned make_workers(struct run *run, struct device *devices, struct worker *workers)
{
    const struct options *options = run->options;
    unsigned total = options->busy * options->queues, count = options->one_thread ? 1 : total;

    for (unsigned i = 0; i < total; i++) {
        struct worker *worker = &workers[i % count];

        if (!worker->queues)
            *worker =
                (struct worker){.run = run, .queues = allocate(total, sizeof *worker->queues)};
        worker->queues[worker->queue_count++] =
            &devices[i / options->queues].queues[i % options->queues];
    }
    return count;
}

static void drive(struct run *run, struct worker *workers, unsigned count, struct figures *figures)
{
    const struct options *options = run->options;
    pthread_t *threads = allocate(count, sizeof *threads);
    double warmup_s = options->ops ? 0 : options->warmup_s;
    uint64_t begin_ns = now_ns() + (uint64_t)(warmup_s * 1e9);

    run->budget = (int64_t)options->ops;
    run->phase = options->ops ? PHASE_TIMED : PHASE_WARM;
    figures->device_cpu_s = -cpu_s_of(options->pids, options->pid_count);
    figures->own_cpu_s = -own_cpu_s();
    for (unsigned i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, worker_run, &workers[i]) != 0)
            die("no thread for worker %u", i);
    if (!options->ops) {
        sleep_until(begin_ns);
        figures->device_cpu_s = -cpu_s_of(options->pids, options->pid_count);
        figures->own_cpu_s = -own_cpu_s();
        begin_ns = now_ns();
        run->phase = PHASE_TIMED;
        sleep_until(begin_ns + (uint64_t)(options->seconds * 1e9));
        figures->seconds = (double)(now_ns() - begin_ns) / 1e9;
        figures->device_cpu_s += cpu_s_of(options->pids, options->pid_count);
        figures->own_cpu_s += own_cpu_s();
        run->phase = PHASE_OVER;
    }
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    if (options->ops) {
        figures->seconds = (double)(now_ns() - begin_ns) / 1e9;
        figures->device_cpu_s += cpu_s_of(options->pids, options->pid_count);
        figures->own_cpu_s += own_cpu_s();
    }
    free(threads);
}

static void print_devices(const struct device *devices, const struct options *options)
{
    uint64_t kicks = 0, interrupts = 0;

    for (unsigned i = 0; i < options->socket_count; i++)
        for (unsigned q = 0; q < options->queues; q++) {
            kicks += devices[i].queues[q].ring.kicks;
            interrupts += devices[i].queues[q].ring.interrupts;
        }
    printf(", \"features\": %llu, \"fuse_minor\": %u, \"max_write_bytes\": %u, \"parts\": %u, "
           "\"kicks\": %llu, \"interrupts\": %llu, \"attach_ns\": [",
           (unsigned long long)devices[0].connection.features, devices[0].minor,
           devices[0].max_write_bytes, devices[0].parts, (unsigned long long)kicks,
           (unsigned long long)interrupts);
    for (unsigned i = 0; i < options->socket_count; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)devices[i].attach_ns);
    printf("]");
}

static void print_figures(const struct options *options, const struct worker *sum,
                          const struct figures *figures)
{
    const struct histogram *h = &sum->histogram;
    double seconds = options->operation == OP_LIST ? (double)sum->busy_ns / 1e9 : figures->seconds;

    printf("{\"operation\": \"%s\", \"ops\": %llu, \"bytes\": %llu, \"entries\": %llu, "
           "\"seconds\": %.9f, \"checked_pages\": %llu, \"device_cpu_s\": %.2f, "
           "\"front_end_cpu_s\": %.4f, ",
           operation_names[options->operation], (unsigned long long)sum->ops,
           (unsigned long long)sum->bytes, (unsigned long long)sum->entries, seconds,
           (unsigned long long)sum->checked_pages, figures->device_cpu_s, figures->own_cpu_s);
    printf("\"ns\": {\"mean\": %.0f, \"p50\": %llu, \"p90\": %llu, \"p99\": %llu, \"p999\": %llu, "
           "\"max\": %llu}",
           h->total ? h->sum_ns / (double)h->total : 0.0,
           (unsigned long long)histogram_percentile(h, 50),
           (unsigned long long)histogram_percentile(h, 90),
           (unsigned long long)histogram_percentile(h, 99),
           (unsigned long long)histogram_percentile(h, 99.9), (unsigned long long)h->max_ns);
}

static void measure(struct run *run, struct device *devices, struct worker *sum,
                    struct figures *figures)
{
    const struct options *options = run->options;
    struct worker *workers = allocate((size_t)options->busy * options->queues, sizeof *workers);
    unsigned count = make_workers(run, devices, workers);

    drive(run, workers, count, figures);
    for (unsigned i = 0; i < count; i++) {
        histogram_merge(&sum->histogram, &workers[i].histogram);
        sum->ops += workers[i].ops;
        sum->bytes += workers[i].bytes;
        sum->entries += workers[i].entries;
        sum->busy_ns += workers[i].busy_ns;
        sum->checked_pages += workers[i].checked_pages;
    }
    for (unsigned i = 0; options->operation == OP_WRITE && i < options->busy; i++)
        sum->checked_pages += device_verify_writes(&devices[i]);
}

/* Look up every file, and then look at every one again, which a device may have let go of. */
static void walk(struct device *device)
{
    uint64_t begin_ns = now_ns(), known_ns;

    device_prepare(device);
    known_ns = now_ns();
    device_look_again(device);
    printf("{\"known_s\": %.3f, \"again_s\": %.3f}\n", (double)(known_ns - begin_ns) / 1e9,
           (double)(now_ns() - known_ns) / 1e9);
}

/* Stay attached until standard input ends. */
static void stay(void)
{
    fflush(stdout);
    while (getchar() != EOF)
        ;
}

int main(int argc, char **argv)
{
    static struct options options;
    static struct worker sum;
    struct figures figures = {0};
    struct run run = {.options = &options};
    struct device *devices;

    options_parse(&options, argc, argv);
    if (options.target != TARGET_DEVICE) {
        floor_run(&options, &sum, &figures.seconds);
        print_figures(&options, &sum, &figures);
        puts("}");
        return 0;
    }
    devices = allocate(options.socket_count, sizeof *devices);
    for (unsigned i = 0; i < options.socket_count; i++) {
        device_attach(&devices[i], &options, i);
        if (i < options.busy && options.operation != OP_WALK)
            device_prepare(&devices[i]);
    }
    if (options.operation == OP_WALK) {
        walk(&devices[0]);
        stay();
        return 0;
    }
    if (options.operation != OP_ATTACH)
        measure(&run, devices, &sum, &figures);
    print_figures(&options, &sum, &figures);
    print_devices(devices, &options);
    puts("}");
    if (options.operation == OP_ATTACH)
        stay();
    return 0;
}

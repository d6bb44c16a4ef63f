/* A vhost-user front-end that joins a virtio-net device to a TAP interface, until standard input
 * ends, and then prints what each pair of queues moved as one JSON array.
 *
 *     net_front_end [--no-offloads] [--pairs N] [--polling] SOCKET INTERFACE
 *
 * Stands for QEMU and a Linux guest's driver together: guest memory is a memfd, the rings and all
 * buffers lie in a pool inside it, and the interface is the guest's network stack. It must not know
 * which device it drives. A line with the negotiated features is printed as soon as packets pass.
 */

#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "adapter.h"
#include "process.h"

/* Wait until standard input ends; a device that leaves before is an error. */
static void stay(const struct connection *connection)
{
    struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                            {.fd = connection->fd, .events = POLLIN}};

    while (poll(fds, 2, -1) >= 0) {
        char byte;

        if (fds[1].revents)
            die("%s: the device has closed the connection", connection->path);
        if (fds[0].revents && read(STDIN_FILENO, &byte, 1) <= 0)
            return;
    }
    die("cannot wait: %m");
}

static void print_traffic(const char *name, const struct traffic *traffic, const struct ring *ring)
{
    printf("\"%s\": {\"packets\": %llu, \"bytes\": %llu, \"dropped\": %llu, \"kicks\": %llu, "
           "\"interrupts\": %llu}",
           name, (unsigned long long)traffic->packets, (unsigned long long)traffic->bytes,
           (unsigned long long)traffic->dropped, (unsigned long long)ring->kicks,
           (unsigned long long)ring->interrupts);
}

static void print_pairs(const struct adapter *adapter)
{
    printf("[");
    for (unsigned i = 0; i < adapter->count; i++) {
        const struct pair *pair = &adapter->pairs[i];

        printf("%s{", i ? ", " : "");
        print_traffic("received", &pair->received, &pair->receive);
        printf(", ");
        print_traffic("sent", &pair->sent, &pair->transmit);
        printf("}");
    }
    puts("]");
    fflush(stdout);
}

static void read_options(struct options *options, int argc, char **argv)
{
    enum { NO_OFFLOADS, PAIRS, POLLING };
    static const struct option names[] = {
        {"no-offloads", no_argument, NULL, NO_OFFLOADS},
        {"pairs", required_argument, NULL, PAIRS},
        {"polling", no_argument, NULL, POLLING},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) >= 0) {
        switch (option) {
        case NO_OFFLOADS:
            options->no_offloads = true;
            break;
        case PAIRS:
            options->pairs = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case POLLING:
            options->polling = true;
            break;
        default:
            exit(1);
        }
    }
    if (argc != optind + 2 || options->pairs < 1 || options->pairs > MAX_PAIRS)
        die("usage: net_front_end [--no-offloads] [--pairs 1..%u] [--polling] SOCKET INTERFACE",
            MAX_PAIRS);
    options->socket = argv[optind];
    options->interface = argv[optind + 1];
}

int main(int argc, char **argv)
{
    static struct adapter adapter;
    struct options options = {.pairs = 1};

    read_options(&options, argc, argv);
    adapter_attach(&adapter, &options);
    for (unsigned i = 0; i < adapter.count; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, pair_receive, &adapter.pairs[i]) != 0 ||
            pthread_create(&thread, NULL, pair_transmit, &adapter.pairs[i]) != 0)
            die("no threads");
    }
    printf("{\"features\": %llu}\n", (unsigned long long)adapter.connection.features);
    fflush(stdout);
    stay(&adapter.connection);
    print_pairs(&adapter);
    _exit(0); /* the threads move packets until the end */
}

/* A vhost-user front-end that joins a virtio-net device to a TAP interface, until standard input
 * ends, and then prints what it moved as one JSON object.
 *
 *     net_front_end SOCKET INTERFACE [--no-offloads]
 *
 * Stands for QEMU and a Linux guest's driver together: guest memory is a memfd, the rings and all
 * buffers lie in a pool inside it, and the interface is the guest's network stack. It must not know
 * which device it drives. A line with the negotiated features is printed as soon as packets pass.
 */

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
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

int main(int argc, char **argv)
{
    static struct adapter adapter;
    pthread_t threads[2];
    bool offloads = argc != 4;

    if (argc < 3 || argc > 4 || (argc == 4 && strcmp(argv[3], "--no-offloads") != 0))
        die("usage: net_front_end SOCKET INTERFACE [--no-offloads]");
    adapter_attach(&adapter, argv[1], argv[2], offloads);
    if (pthread_create(&threads[0], NULL, adapter_receive, &adapter) != 0 ||
        pthread_create(&threads[1], NULL, adapter_transmit, &adapter) != 0)
        die("no threads");
    printf("{\"features\": %llu}\n", (unsigned long long)adapter.connection.features);
    fflush(stdout);
    stay(&adapter.connection);
    printf("{");
    print_traffic("received", &adapter.received, &adapter.receive);
    printf(", ");
    print_traffic("sent", &adapter.sent, &adapter.transmit);
    puts("}");
    fflush(stdout);
    _exit(0); /* the threads move packets until the end */
}

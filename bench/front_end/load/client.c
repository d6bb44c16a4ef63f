/* The clients: a thread for each connection, with one request in flight.
 *
 * Owns the form of the requests and checks the length of each answer. Must not know the network in
 * between.
 */
#include "client.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <netinet/tcp.h>

#include "process.h"
#include "server.h"

enum { ANSWER_DEADLINE_S = 10 };

static const char HTTP_REQUEST[] = "GET / HTTP/1.1\r\nHost: server\r\nAccept: */*\r\n\r\n";

struct client {
    const struct load *load;
    uint64_t begin_ns, end_ns;
    struct histogram histogram;
};

static int open_connection(const struct load *load)
{
    struct linger reset = {1, 0}; /* no TIME_WAIT, which would use up the ports */
    struct timeval deadline = {.tv_sec = ANSWER_DEADLINE_S};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof deadline);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof deadline);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&load->address, sizeof load->address) < 0)
        die("cannot connect: %m");
    return fd;
}

static void ask(const struct load *load, int fd)
{
    char echo[ECHO_BYTES] = {0}, answer[HTTP_BODY_BYTES + 128];
    const char *request = load->http ? HTTP_REQUEST : echo;
    size_t bytes = load->http ? sizeof HTTP_REQUEST - 1 : sizeof echo, have = 0;
    size_t wanted = load->http ? HTTP_BODY_BYTES : ECHO_BYTES;
    bool whole = false;

    if (send(fd, request, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        die("cannot send a request: %m");
    while (!whole) {
        ssize_t got = recv(fd, answer + have, sizeof answer - have, 0);
        const char *body;

        if (got <= 0)
            die("no answer: %s", got ? strerror(errno) : "the connection was closed");
        have += (size_t)got;
        if (have > sizeof answer)
            die("an answer of more than %zu bytes", sizeof answer);
        if (!load->http)
            whole = have == wanted;
        else if ((body = memmem(answer, have, "\r\n\r\n", 4)))
            whole = have == (size_t)(body + 4 - answer) + wanted;
    }
}

static void *run_client(void *argument)
{
    struct client *client = argument;
    const struct load *load = client->load;
    int fd = load->connecting ? -1 : open_connection(load);
    uint64_t start, now = now_ns();

    while (now < client->end_ns) {
        start = now;
        if (load->connecting)
            fd = open_connection(load);
        ask(load, fd);
        if (load->connecting)
            close(fd);
        now = now_ns();
        if (start >= client->begin_ns && now < client->end_ns)
            histogram_add(&client->histogram, now - start);
    }
    if (!load->connecting)
        close(fd);
    return NULL;
}

void load_run(const struct load *load, struct figures *figures)
{
    struct client *clients = allocate(load->connections, sizeof *clients);
    pthread_t *threads = allocate(load->connections, sizeof *threads);
    uint64_t begin_ns = now_ns() + (uint64_t)(load->warmup_s * 1e9);

    for (unsigned i = 0; i < load->connections; i++) {
        clients[i].load = load;
        clients[i].begin_ns = begin_ns;
        clients[i].end_ns = begin_ns + (uint64_t)(load->seconds * 1e9);
        if (pthread_create(&threads[i], NULL, run_client, &clients[i]) != 0)
            die("no thread for client %u", i);
    }
    for (unsigned i = 0; i < load->connections; i++) {
        pthread_join(threads[i], NULL);
        histogram_merge(&figures->histogram, &clients[i].histogram);
    }
    figures->seconds = load->seconds;
    free(threads);
    free(clients);
}

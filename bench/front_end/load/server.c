/* The server: a thread for each connection, which it keeps until the client closes it.
 *
 * Owns the form of the answers. Must not know what is measured.
 */
#include "server.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <netinet/tcp.h>

#include "process.h"

enum { BACKLOG = 1024, STACK_BYTES = 64 << 10, MAX_REQUEST_BYTES = 4096 };

static char http_answer[HTTP_BODY_BYTES + 128];
static size_t http_bytes;

static bool send_all(int fd, const char *data, size_t bytes)
{
    return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static bool is_whole_http(const char *request, size_t bytes)
{
    return bytes >= 4 && memcmp(request + bytes - 4, "\r\n\r\n", 4) == 0;
}

static void *answer(void *argument)
{
    int *own = argument, fd = *own, one = 1;
    char request[MAX_REQUEST_BYTES];
    size_t have = 0;
    ssize_t got;

    free(own);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (have < sizeof request &&
           (got = recv(fd, request + have, sizeof request - have, 0)) > 0) {
        have += (size_t)got;
        if (request[0] == 'G') {
            if (!is_whole_http(request, have))
                continue;
            if (!send_all(fd, http_answer, http_bytes))
                break;
        } else {
            if (have < ECHO_BYTES)
                continue;
            if (!send_all(fd, request, ECHO_BYTES))
                break;
        }
        have = 0;
    }
    close(fd);
    return NULL;
}

void serve(const struct sockaddr_in *address)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    pthread_attr_t attributes;

    http_bytes = (size_t)snprintf(http_answer, sizeof http_answer,
                                  "HTTP/1.1 200 OK\r\nContent-Length: %u\r\n\r\n", HTTP_BODY_BYTES);
    memset(http_answer + http_bytes, 'x', HTTP_BODY_BYTES);
    http_bytes += HTTP_BODY_BYTES;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (listener < 0 || bind(listener, (const struct sockaddr *)address, sizeof *address) < 0 ||
        listen(listener, BACKLOG) < 0)
        die("cannot listen: %m");
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    puts("listening");
    fflush(stdout);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), *own;
        pthread_t thread;

        if (fd < 0)
            continue;
        own = allocate(1, sizeof *own);
        *own = fd;
        if (pthread_create(&thread, &attributes, answer, own) != 0)
            die("no thread for a connection");
    }
}

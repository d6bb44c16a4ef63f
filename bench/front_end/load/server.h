/* A server that answers requests of a fixed form on TCP connections. */
#ifndef LOAD_SERVER_H
#define LOAD_SERVER_H

#include <netinet/in.h>

/* A request is ECHO_BYTES, which come back, or begins with 'G' and is one of HTTP. */
#define ECHO_BYTES 64u
#define HTTP_BODY_BYTES 1024u

/* Serve until the process is ended; prints a line when connections are accepted. */
_Noreturn void serve(const struct sockaddr_in *address);

#endif

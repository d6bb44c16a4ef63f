/* Small requests over TCP, and their times as one JSON object.
 *
 *     net_load serve ADDRESS PORT
 *     net_load echo|http|connect ADDRESS PORT SECONDS WARMUP_S CONNECTIONS
 *
 * echo and http keep their connections; connect opens one for each request of ECHO_BYTES.
 */

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "process.h"
#include "server.h"

int main(int argc, char **argv)
{
    static struct figures figures;
    struct load load = {.address = {.sin_family = AF_INET}};
    const struct histogram *h = &figures.histogram;

    if (argc < 4 || inet_pton(AF_INET, argv[2], &load.address.sin_addr) != 1)
        die("usage: net_load serve|echo|http|connect ADDRESS PORT [SECONDS WARMUP_S CONNECTIONS]");
    load.address.sin_port = htons((uint16_t)strtoul(argv[3], NULL, 10));
    if (strcmp(argv[1], "serve") == 0)
        serve(&load.address);
    load.http = strcmp(argv[1], "http") == 0;
    load.connecting = strcmp(argv[1], "connect") == 0;
    if (argc != 7 || (!load.http && !load.connecting && strcmp(argv[1], "echo") != 0))
        die("'%s' is no load, or its times are not given", argv[1]);
    load.seconds = strtod(argv[4], NULL);
    load.warmup_s = strtod(argv[5], NULL);
    load.connections = (unsigned)strtoul(argv[6], NULL, 10);
    load_run(&load, &figures);
    printf("{\"ops\": %llu, \"seconds\": %.6f, \"cpu_s\": %.4f, \"p50_ns\": %llu, "
           "\"p99_ns\": %llu, \"max_ns\": %llu}\n",
           (unsigned long long)h->total, figures.seconds, own_cpu_s(),
           (unsigned long long)histogram_percentile(h, 50),
           (unsigned long long)histogram_percentile(h, 99), (unsigned long long)h->max_ns);
    return 0;
}

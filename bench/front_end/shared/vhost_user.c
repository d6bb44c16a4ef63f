/* The front-end's side of vhost-user: QEMU's order of messages (docs/interop/vhost-user.rst).
 *
 * Owns the socket. Must not know a kind of device or what is measured.
 */
#include "vhost_user.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "process.h"
#include "ring.h"

enum {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
};

#define F_VERSION_1 (1ull << 32)
#define F_PROTOCOL_FEATURES (1ull << 30)
#define PROTOCOL_F_MQ (1ull << 0)
#define PROTOCOL_F_REPLY_ACK (1ull << 3)
#define PROTOCOL_F_CONFIG (1ull << 9)
#define PROTOCOL_F_RESET_DEVICE (1ull << 13)
#define FLAG_REPLY (1u << 2)
#define FLAG_NEED_REPLY (1u << 3)
#define VERSION 1u

struct header {
    uint32_t request, flags, bytes;
};
struct vring_state {
    uint32_t index, number;
};
struct vring_addr {
    uint32_t index, flags;
    uint64_t desc, used, avail, log;
};
struct mem_table {
    uint32_t count, padding;
    uint64_t gpa, bytes, user_addr, offset;
};

static void send_message(struct connection *c, uint32_t request, uint32_t flags,
                         const void *payload, uint32_t bytes, int fd)
{
    struct header header = {request, VERSION | flags, bytes};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)payload, bytes}};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = bytes ? 2 : 1};

    if (fd >= 0) {
        struct cmsghdr *rights;

        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    if (sendmsg(c->fd, &message, MSG_NOSIGNAL) != (ssize_t)(sizeof header + bytes))
        die("%s: cannot send message %u: %m", c->path, request);
}

static void receive_exactly(struct connection *c, void *data, size_t bytes)
{
    for (size_t have = 0; have < bytes;) {
        ssize_t got = recv(c->fd, (char *)data + have, bytes - have, 0);

        if (got == 0)
            die("%s: the device has closed the connection", c->path);
        if (got < 0 && errno != EINTR)
            die("%s: no answer: %m", c->path);
        have += got > 0 ? (size_t)got : 0;
    }
}

static void receive_answer(struct connection *c, uint32_t request, void *payload, uint32_t bytes)
{
    struct header header;

    receive_exactly(c, &header, sizeof header);
    if (header.request != request || !(header.flags & FLAG_REPLY) || header.bytes != bytes)
        die("%s: message %u was answered by message %u, flags 0x%x, %u bytes", c->path, request,
            header.request, header.flags, header.bytes);
    receive_exactly(c, payload, bytes);
}

static uint64_t ask(struct connection *c, uint32_t request)
{
    uint64_t answer;

    send_message(c, request, 0, NULL, 0, -1);
    receive_answer(c, request, &answer, sizeof answer);
    return answer;
}

static void send_request(struct connection *c, uint32_t request, const void *payload,
                         uint32_t bytes, int fd)
{
    uint64_t refused;

    send_message(c, request, c->reply_ack ? FLAG_NEED_REPLY : 0, payload, bytes, fd);
    if (!c->reply_ack)
        return;
    receive_answer(c, request, &refused, sizeof refused);
    if (refused)
        die("%s: the device refused message %u", c->path, request);
}

static void send_state(struct connection *c, uint32_t request, uint32_t index, uint32_t number)
{
    struct vring_state state = {index, number};

    send_request(c, request, &state, sizeof state, -1);
}

static void send_event(struct connection *c, uint32_t request, uint64_t index, int fd)
{
    send_request(c, request, &index, sizeof index, fd);
}

/* Connect and negotiate. Of the features that are asked for, only VERSION_1 and PROTOCOL_FEATURES,
 * which always are, have to be offered. */
void connection_open(struct connection *c, const char *path, uint64_t features)
{
    const uint64_t wanted = F_VERSION_1 | F_PROTOCOL_FEATURES | features;
    const uint64_t wanted_protocol =
        PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_CONFIG | PROTOCOL_F_RESET_DEVICE;
    struct timeval deadline = {.tv_sec = ANSWER_DEADLINE_NS / 1000000000ull};
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    *c = (struct connection){.path = path, .queues = 2};
    if (strlen(path) >= sizeof address.sun_path)
        die("%s: too long for the path of a socket", path);
    strcpy(address.sun_path, path);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("%s: cannot connect: %m", path);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof deadline);
    send_request(c, SET_OWNER, NULL, 0, -1);
    c->features = ask(c, GET_FEATURES) & wanted;
    if (!(c->features & F_VERSION_1) || !(c->features & F_PROTOCOL_FEATURES))
        die("%s: the device offers no VERSION_1 or PROTOCOL_FEATURES", path);
    c->protocol_features = ask(c, GET_PROTOCOL_FEATURES) & wanted_protocol;
    send_request(c, SET_PROTOCOL_FEATURES, &c->protocol_features, sizeof c->protocol_features, -1);
    c->reply_ack = c->protocol_features & PROTOCOL_F_REPLY_ACK;
    if (c->protocol_features & PROTOCOL_F_MQ)
        c->queues = ask(c, GET_QUEUE_NUM);
    send_request(c, SET_FEATURES, &c->features, sizeof c->features, -1);
}

void connection_attach(struct connection *c, const struct ram *ram)
{
    struct mem_table table = {1, 0, RAM_GPA, ram->bytes, (uintptr_t)ram->base, 0};

    send_request(c, SET_MEM_TABLE, &table, sizeof table, ram->fd);
}

void connection_start_ring(struct connection *c, const struct ram *ram, const struct ring *ring)
{
    uint64_t base = (uintptr_t)ram->base;
    struct vring_addr addr = {ring->index,           0, base + ring->at_desc, base + ring->at_used,
                              base + ring->at_avail, 0};

    send_state(c, SET_VRING_NUM, ring->index, ring->size);
    send_state(c, SET_VRING_BASE, ring->index, 0);
    send_request(c, SET_VRING_ADDR, &addr, sizeof addr, -1);
    send_event(c, SET_VRING_KICK, ring->index, ring->kick_fd);
    send_event(c, SET_VRING_CALL, ring->index, ring->call_fd);
    send_state(c, SET_VRING_ENABLE, ring->index, 1);
}

/*
 * Finds, reads and writes the virtio-serial port.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "frames.h"
#include "log.h"
#include "port.h"

#define PORTS_DIR "/sys/class/virtio-ports"
#define FRAME_BYTES (FRAME_HEADER_BYTES + FRAME_MESSAGE_LIMIT)
#define OUTPUT_LIMIT (256u << 10) /* what output may fill; answers may follow it */
#define OUT_BYTES (2 * OUTPUT_LIMIT + FRAME_BYTES)

static struct frame_reader in;
static uint8_t out[OUT_BYTES];
static size_t out_start, out_end;
static int port_fd = -1;
static bool connected, said_skipped;

static int open_port(const char *device)
{
    char path[PATH_BYTES], name[sizeof(PORT_NAME) + 1];
    ssize_t length;

    if (!path_join(path, PORTS_DIR "/", device, "name"))
        return -1;
    length = file_read(path, name, sizeof(name));
    if (length && length > 0 && name[length - 1] == '\n')
        length--;
    if (length != sizeof(PORT_NAME) - 1 || memcmp(name, PORT_NAME, sizeof(PORT_NAME) - 1) != 0)
        return -1;
    if (!path_join(path, "/dev/", device, ""))
        return -1;
    return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

static void find(void)
{
    DIR *ports = opendir(PORTS_DIR);

    if (!ports)
        return;
    for (struct dirent *entry = readdir(ports); entry && port_fd < 0; entry = readdir(ports)) {
        if (entry->d_name[0] != '.')
            port_fd = open_port(entry->d_name);
    }
    closedir(ports);
}

bool port_look(void)
{
    struct pollfd wait = {.events = POLLIN};

    if (connected)
        return false;
    if (port_fd < 0)
        find();
    if (port_fd < 0)
        return false;
    wait.fd = port_fd;
    if (poll(&wait, 1, 0) < 0 || wait.revents & (POLLHUP | POLLERR | POLLNVAL))
        return false;
    in.start = in.end = out_start = out_end = 0;
    connected = true;
    return true;
}

bool port_is_connected(void)
{
    return connected;
}

struct pollfd port_poll(void)
{
    struct pollfd wait = {.fd = connected ? port_fd : -1};

    if (port_has_room_for_answer())
        wait.events |= POLLIN;
    if (out_end > out_start)
        wait.events |= POLLOUT;
    return wait;
}

static void disconnect(void)
{
    connected = false;
    in.start = in.end = out_start = out_end = 0;
}

/* Both return whether the port is still good. */
static bool receive(void)
{
    size_t room;
    uint8_t *bytes = frame_room(&in, &room);
    ssize_t got = room ? read(port_fd, bytes, room) : 0;

    if (got > 0)
        frame_received(&in, (size_t)got);
    return got >= 0 || errno == EAGAIN || errno == EINTR;
}

static bool transmit(void)
{
    while (out_end > out_start) {
        ssize_t put = write(port_fd, out + out_start, out_end - out_start);

        if (put < 0)
            return errno == EAGAIN || errno == EINTR;
        if (!put)
            return true;
        out_start += (size_t)put;
    }
    out_start = out_end = 0;
    return true;
}

bool port_turn(short events)
{
    bool good = !(events & (POLLHUP | POLLERR | POLLNVAL));

    if (good && events & POLLIN)
        good = receive();
    if (good && out_end > out_start)
        good = transmit();
    if (good)
        return true;
    if (events & POLLNVAL || errno == ENODEV) { /* the port was unplugged */
        close(port_fd);
        port_fd = -1;
    }
    disconnect();
    return false;
}

bool port_take(const uint8_t **message, uint32_t *length)
{
    bool taken = frame_take(&in, message, length);

    if (in.skipped && !said_skipped) {
        say("the host sent bytes that are no frame; they are skipped, and this is said once");
        said_skipped = true;
    }
    return taken;
}

uint32_t port_take_too_long(void)
{
    uint32_t length = in.too_long;

    in.too_long = 0;
    return length;
}

bool port_has_room_for_output(void)
{
    return connected && out_end - out_start <= OUTPUT_LIMIT - FRAME_BYTES;
}

bool port_has_room_for_answer(void)
{
    return out_end - out_start <= OUT_BYTES - FRAME_BYTES;
}

uint8_t *port_message(void)
{
    if (out_start) {
        memmove(out, out + out_start, out_end - out_start);
        out_end -= out_start;
        out_start = 0;
    }
    return out + out_end + FRAME_HEADER_BYTES;
}

void port_send(uint32_t length)
{
    if (!connected)
        return;
    frame_write_header(out + out_end, length);
    out_end += FRAME_HEADER_BYTES + (size_t)length;
}

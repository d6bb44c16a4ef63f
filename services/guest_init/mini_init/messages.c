/*
 * Writes messages, with nanopb.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <pb_decode.h>
#include <pb_encode.h>

#include "clock.h"
#include "files.h"
#include "frames.h"
#include "log.h"
#include "messages.h"
#include "port.h"
#include "porthole/guest/v1/mini_init.pb.h"

#define FURTHER_FILE "/capabilities.binpb"
#define FURTHER_LIMIT 4096u

static PB_BYTES_ARRAY_T(OUTPUT_BYTES) output;

/* Write a message, and raw bytes after it; then send it. */
static void send_message(const FromMiniInit *message, const uint8_t *further, size_t further_bytes)
{
    pb_ostream_t stream = pb_ostream_from_buffer(port_message(), FRAME_MESSAGE_LIMIT);

    if (pb_encode(&stream, FromMiniInit_fields, message) &&
        (!further_bytes || pb_write(&stream, further, further_bytes)))
        port_send((uint32_t)stream.bytes_written);
    else
        say("a message was not sent: %s", PB_GET_ERROR(&stream));
}

/* Whether bytes are a message, of fields that nobody here needs to know. */
static bool is_message(const uint8_t *bytes, size_t length)
{
    pb_istream_t stream = pb_istream_from_buffer(bytes, length);
    pb_wire_type_t wire_type;
    uint32_t tag;
    bool at_end = false;

    while (pb_decode_tag(&stream, &wire_type, &tag, &at_end)) {
        if (!pb_skip_field(&stream, wire_type))
            return false;
    }
    return at_end;
}

/*
 * Write the further capabilities as FromMiniInit.hello.capabilities once more: a parser merges a
 * field that comes twice, unknown fields as well. Returns their length; 0: the image has none.
 */
static size_t write_further(uint8_t *bytes, size_t limit)
{
    static uint8_t fields[FURTHER_LIMIT + 1];
    ssize_t length = file_read(FURTHER_FILE, (char *)fields, sizeof(fields));
    pb_ostream_t size = PB_OSTREAM_SIZING, stream = pb_ostream_from_buffer(bytes, limit);

    if (length <= 0)
        return 0;
    if (length > (ssize_t)FURTHER_LIMIT || !is_message(fields, (size_t)length)) {
        say(FURTHER_FILE " is no message of at most %u bytes; it is left out", FURTHER_LIMIT);
        return 0;
    }
    if (pb_encode_tag(&size, PB_WT_STRING, Hello_capabilities_tag) &&
        pb_encode_string(&size, fields, (size_t)length) &&
        pb_encode_tag(&stream, PB_WT_STRING, FromMiniInit_hello_tag) &&
        pb_encode_varint(&stream, size.bytes_written) &&
        pb_encode_tag(&stream, PB_WT_STRING, Hello_capabilities_tag) &&
        pb_encode_string(&stream, fields, (size_t)length))
        return stream.bytes_written;
    return 0;
}

void send_hello(uint32_t request_id, const struct capabilities *capabilities)
{
    FromMiniInit message = FromMiniInit_init_zero;
    Hello *hello = &message.message.hello;
    uint8_t further[FURTHER_LIMIT + 32];

    message.request_id = request_id;
    message.which_message = FromMiniInit_hello_tag;
    *hello = (Hello)Hello_init_zero;
    hello->has_capabilities = true;
    if (capabilities->pool.source != POOL_NONE) {
        hello->capabilities.has_swiotlb_pool = true;
        hello->capabilities.swiotlb_pool.base = capabilities->pool.base;
        hello->capabilities.swiotlb_pool.size_bytes = capabilities->pool.size_bytes;
    }
    (void)snprintf(hello->capabilities.kernel_release, sizeof(hello->capabilities.kernel_release),
                   "%s", capabilities->kernel_release);
    hello->capabilities.has_seccomp_user_notification = true;
    hello->capabilities.seccomp_user_notification = capabilities->seccomp_user_notification;
    hello->pool_source = (PoolSource)capabilities->pool.source;
    hello->started_ns = capabilities->started_ns;
    hello->read_ns = capabilities->read_ns;
    hello->sent_ns = boot_time_ns();
    send_message(&message, further, write_further(further, sizeof(further)));
}

void send_done(uint32_t request_id)
{
    FromMiniInit message = FromMiniInit_init_zero;

    message.request_id = request_id;
    message.which_message = FromMiniInit_done_tag;
    send_message(&message, NULL, 0);
}

void send_failure(uint32_t request_id, int error, const char *format, ...)
{
    FromMiniInit message = FromMiniInit_init_zero;
    Failure *failure = &message.message.failure;
    va_list arguments;

    message.request_id = request_id;
    message.which_message = FromMiniInit_failure_tag;
    failure->error_number = (uint32_t)error;
    va_start(arguments, format);
    (void)vsnprintf(failure->text, sizeof(failure->text), format, arguments);
    va_end(arguments);
    send_message(&message, NULL, 0);
}

uint8_t *output_buffer(void)
{
    return output.bytes;
}

void send_output(uint32_t run_id, enum stream stream, uint32_t length)
{
    FromMiniInit message = FromMiniInit_init_zero;
    RunOutput *said = &message.message.output;
    pb_bytes_array_t *bytes = (pb_bytes_array_t *)&output;

    output.size = (pb_size_t)length;
    message.which_message = FromMiniInit_output_tag;
    said->run_id = run_id;
    if (stream == STREAM_OUTPUT) {
        said->which_output = RunOutput_standard_output_tag;
        said->output.standard_output = bytes;
    } else {
        said->which_output = RunOutput_standard_error_tag;
        said->output.standard_error = bytes;
    }
    send_message(&message, NULL, 0);
}

void send_ended(uint32_t run_id, int wait_status)
{
    FromMiniInit message = FromMiniInit_init_zero;
    RunOutput *said = &message.message.output;
    Ended *ended = &said->output.ended;

    message.which_message = FromMiniInit_output_tag;
    said->run_id = run_id;
    said->which_output = RunOutput_ended_tag;
    if (WIFSIGNALED(wait_status)) {
        ended->which_end = Ended_signal_tag;
        ended->end.signal = (uint32_t)WTERMSIG(wait_status);
    } else {
        ended->which_end = Ended_exit_code_tag;
        ended->end.exit_code = (uint32_t)WEXITSTATUS(wait_status);
    }
    send_message(&message, NULL, 0);
}

void send_input_credit(uint32_t run_id, uint32_t bytes)
{
    FromMiniInit message = FromMiniInit_init_zero;

    message.which_message = FromMiniInit_credit_tag;
    message.message.credit.run_id = run_id;
    message.message.credit.bytes = bytes;
    send_message(&message, NULL, 0);
}

static pb_size_t copy_ports(uint32_t *numbers, const struct ports *ports)
{
    memcpy(numbers, ports->numbers, ports->count * sizeof(*numbers));
    return (pb_size_t)ports->count;
}

void send_listening(const struct listening *listening)
{
    FromMiniInit message = FromMiniInit_init_zero;
    Listening *said = &message.message.listening;

    message.which_message = FromMiniInit_listening_tag;
    said->ipv4_ports_count = copy_ports(said->ipv4_ports, &listening->ipv4);
    said->ipv6_ports_count = copy_ports(said->ipv6_ports, &listening->ipv6);
    send_message(&message, NULL, 0);
}

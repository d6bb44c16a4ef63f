/*
 * Reads messages, with nanopb; checks their bounds; and carries them out.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <pb_decode.h>

#include "commands.h"
#include "jobs.h"
#include "kernel.h"
#include "listening.h"
#include "mounts.h"
#include "network.h"
#include "porthole/guest/v1/mini_init.pb.h"
#include "requests.h"

#define WAIT_LIMIT_MS 60000u
#define ITEM_LIMIT 64u /* of addresses, gateways, name servers, domains, directories, groups */
#define SIDE_LIMIT 65535u

static bool end_is_wanted;

bool requests_want_end(void)
{
    return end_is_wanted;
}

/* Whether a number is within its bound; else the request is refused. */
static bool bounded(uint32_t id, const char *what, size_t number, size_t limit)
{
    if (number <= limit)
        return true;
    send_failure(id, EINVAL, "%s: %zu; it must be at most %zu", what, number, limit);
    return false;
}

static bool path_is_bounded(uint32_t id, const char *what, const char *path)
{
    return bounded(id, what, path ? strlen(path) : 0, PATH_MAX - 1);
}

static void run_mount(uint32_t id, const MountRequest *request)
{
    if (bounded(id, "wait_ms", request->wait_ms, WAIT_LIMIT_MS) &&
        bounded(id, "directories", request->directories_count, ITEM_LIMIT) &&
        path_is_bounded(id, "bytes of target", request->target))
        job_start(id, mount_job, request);
}

static void run_configure(uint32_t id, const ConfigureAdapterRequest *request)
{
    if (bounded(id, "wait_ms", request->wait_ms, WAIT_LIMIT_MS) &&
        bounded(id, "addresses", request->addresses_count, ITEM_LIMIT) &&
        bounded(id, "gateways", request->gateways_count, ITEM_LIMIT) &&
        bounded(id, "nameservers", request->nameservers_count, ITEM_LIMIT) &&
        bounded(id, "search_domains", request->search_domains_count, ITEM_LIMIT))
        job_start(id, configure_adapter_job, request);
}

static void run_enter_root(uint32_t id, const EnterRootRequest *request)
{
    struct outcome outcome;

    if (!path_is_bounded(id, "bytes of path", request->path))
        return;
    outcome = enter_root(request->path);
    if (outcome.error)
        send_failure(id, outcome.error, "%s", outcome.text);
    else
        send_done(id);
}

/* Copy words into an array that ends with NULL; free it. */
static char **words(char *const *from, size_t count)
{
    char **copy = calloc(count + 1, sizeof(*copy));

    for (size_t i = 0; copy && i < count; i++)
        copy[i] = from[i];
    return copy;
}

static void run_command(uint32_t id, const Command *command)
{
    const char *directory = command->working_directory;
    struct program program = {
        .arguments = words(command->arguments, command->arguments_count),
        .environment = words(command->environment, command->environment_count),
        .directory = directory && *directory ? directory : "/",
        .terminal = command->has_terminal,
        .rows = (uint16_t)command->terminal.rows,
        .columns = (uint16_t)command->terminal.columns,
        .uid = command->uid,
        .gid = command->gid,
        .groups = command->groups,
        .group_count = command->groups_count,
    };

    if (!command->arguments_count || !program.arguments || !program.environment)
        send_failure(id, EINVAL, "a command without a program");
    else if (bounded(id, "groups", command->groups_count, ITEM_LIMIT) &&
             bounded(id, "rows", command->terminal.rows, SIDE_LIMIT) &&
             bounded(id, "columns", command->terminal.columns, SIDE_LIMIT) &&
             path_is_bounded(id, "bytes of working_directory", directory))
        command_start(id, &program);
    free(program.arguments);
    free(program.environment);
}

static void run_input(const RunInput *input)
{
    const pb_bytes_array_t *bytes = input->input.standard_input;

    switch (input->which_input) {
    case RunInput_standard_input_tag:
        if (bytes)
            command_input(input->run_id, bytes->bytes, bytes->size);
        break;
    case RunInput_end_of_input_tag:
        command_end_input(input->run_id);
        break;
    case RunInput_window_tag:
        command_resize(input->run_id, input->input.window.rows, input->input.window.columns);
        break;
    case RunInput_signal_tag:
        if (input->input.signal > 0 && input->input.signal < NSIG)
            command_signal(input->run_id, (int)input->input.signal);
        break;
    case RunInput_standard_output_closed_tag:
        command_close_output(input->run_id, STREAM_OUTPUT);
        break;
    case RunInput_standard_error_closed_tag:
        command_close_output(input->run_id, STREAM_ERROR);
        break;
    default:
        break;
    }
}

static void dispatch(const ToMiniInit *message, struct capabilities *capabilities)
{
    uint32_t id = message->request_id;

    switch (message->which_message) {
    case ToMiniInit_greeting_tag:
        kernel_read(capabilities);
        send_hello(id, capabilities);
        break;
    case ToMiniInit_mount_tag:
        run_mount(id, &message->message.mount);
        break;
    case ToMiniInit_unmount_tag:
        job_start(id, unmount_job, &message->message.unmount);
        break;
    case ToMiniInit_configure_adapter_tag:
        run_configure(id, &message->message.configure_adapter);
        break;
    case ToMiniInit_enter_root_tag:
        run_enter_root(id, &message->message.enter_root);
        break;
    case ToMiniInit_run_tag:
        run_command(id, &message->message.run);
        break;
    case ToMiniInit_input_tag:
        run_input(&message->message.input);
        break;
    case ToMiniInit_credit_tag:
        command_allow(message->message.credit.run_id, (enum stream)message->message.credit.stream,
                      message->message.credit.bytes);
        break;
    case ToMiniInit_watch_listening_tag:
        send_done(id);
        listening_watch(true);
        break;
    case ToMiniInit_power_off_tag:
        send_done(id);
        end_is_wanted = true;
        break;
    default:
        send_failure(id, ENOSYS, "this mini_init does not know the request");
        break;
    }
}

void request_carry_out(const uint8_t *message, uint32_t length, struct capabilities *capabilities)
{
    ToMiniInit decoded = ToMiniInit_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(message, length);

    if (pb_decode(&stream, ToMiniInit_fields, &decoded))
        dispatch(&decoded, capabilities);
    else
        send_failure(decoded.request_id, EBADMSG, "the request cannot be parsed: %s",
                     PB_GET_ERROR(&stream));
    pb_release(ToMiniInit_fields, &decoded);
}

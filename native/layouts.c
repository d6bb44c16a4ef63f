#include "layouts.h"

#include <stddef.h>

#include "buffers.h"
#include "held_chains.h"
#include "lost_memory.h"
#include "mounts.h"
#include "net.h"
#include "nodes.h"
#include "open_files.h"
#include "python_pins.h"
#include "queue.h"
#include "request.h"
#include "serve.h"

#define WHOLE(type) {.name = #type, .field = "", .size_bytes = sizeof(struct type)}
/* NOLINTBEGIN(bugprone-macro-parentheses,bugprone-sizeof-expression): of a member by its name */
#define FIELD(type, member)                                                                        \
    {.name = #type,                                                                                \
     .field = #member,                                                                             \
     .offset = offsetof(struct type, member),                                                      \
     .size_bytes = sizeof(((struct type *)0)->member)}
/* NOLINTEND(bugprone-macro-parentheses,bugprone-sizeof-expression) */
#define CONSTANT(constant) {.name = #constant, .value = (constant)}

static const struct ph_layout LAYOUTS[] = {
    WHOLE(ph_layout),
    FIELD(ph_layout, name),
    FIELD(ph_layout, field),
    FIELD(ph_layout, offset),
    FIELD(ph_layout, size_bytes),

    WHOLE(ph_constant),
    FIELD(ph_constant, name),
    FIELD(ph_constant, value),

    WHOLE(ph_function),
    FIELD(ph_function, name),
    FIELD(ph_function, signature),

    WHOLE(ph_span),
    FIELD(ph_span, gpa),
    FIELD(ph_span, size_bytes),
    FIELD(ph_span, address),

    WHOLE(ph_queue_state),
    FIELD(ph_queue_state, next_avail),
    FIELD(ph_queue_state, seen_avail),
    FIELD(ph_queue_state, next_used),
    FIELD(ph_queue_state, signalled_used),
    FIELD(ph_queue_state, signal_due),
    FIELD(ph_queue_state, unsignalled),
    FIELD(ph_queue_state, unsignalled_bytes),
    FIELD(ph_queue_state, spin_ns),

    WHOLE(ph_counters),
    FIELD(ph_counters, requests),
    FIELD(ph_counters, bytes_in),
    FIELD(ph_counters, bytes_out),
    FIELD(ph_counters, highest_slot),
    FIELD(ph_counters, frames_dropped),
    FIELD(ph_counters, frames_spoofed),
    FIELD(ph_counters, throttled),

    WHOLE(ph_queue_setup),
    FIELD(ph_queue_setup, desc),
    FIELD(ph_queue_setup, avail),
    FIELD(ph_queue_setup, used),
    FIELD(ph_queue_setup, spans),
    FIELD(ph_queue_setup, counters),
    FIELD(ph_queue_setup, span_count),
    FIELD(ph_queue_setup, size),
    FIELD(ph_queue_setup, kick_fd),
    FIELD(ph_queue_setup, call_fd),
    FIELD(ph_queue_setup, stop_fd),
    FIELD(ph_queue_setup, event_idx),
    FIELD(ph_queue_setup, indirect),
    FIELD(ph_queue_setup, counts_slots),

    WHOLE(iovec),
    FIELD(iovec, iov_base),
    FIELD(iovec, iov_len),

    WHOLE(ph_chain),
    FIELD(ph_chain, readable),
    FIELD(ph_chain, writable),
    FIELD(ph_chain, readable_count),
    FIELD(ph_chain, writable_count),
    FIELD(ph_chain, readable_bytes),
    FIELD(ph_chain, writable_bytes),

    WHOLE(ph_rules),
    FIELD(ph_rules, ino_mask),
    FIELD(ph_rules, uid),
    FIELD(ph_rules, gid),
    FIELD(ph_rules, keep_dir),
    FIELD(ph_rules, keep_file),
    FIELD(ph_rules, valid_s),
    FIELD(ph_rules, open_flags),
    FIELD(ph_rules, opendir_flags),
    FIELD(ph_rules, read_only),
    FIELD(ph_rules, writeback),
    FIELD(ph_rules, submounts),
    FIELD(ph_rules, umask),
    FIELD(ph_rules, acls),
    FIELD(ph_rules, to_python),
    FIELD(ph_rules, keeps_modes),
    FIELD(ph_rules, no_set_ids),
    FIELD(ph_rules, kept_capability),

    WHOLE(ph_mount_setup),
    FIELD(ph_mount_setup, rules),
    FIELD(ph_mount_setup, root_id),
    FIELD(ph_mount_setup, nodes),
    FIELD(ph_mount_setup, all_nodes),
    FIELD(ph_mount_setup, descriptors),
    FIELD(ph_mount_setup, handles),
    FIELD(ph_mount_setup, all_handles),
    FIELD(ph_mount_setup, root_fd),
    FIELD(ph_mount_setup, descriptor_limit),
    FIELD(ph_mount_setup, may_switch),
    FIELD(ph_mount_setup, alone),

    WHOLE(ph_python_pin),
    FIELD(ph_python_pin, id),
    FIELD(ph_python_pin, ino_mask),
    FIELD(ph_python_pin, pinned),
    FIELD(ph_python_pin, fd),
    FIELD(ph_python_pin, node_fd),
    FIELD(ph_python_pin, kind),
    FIELD(ph_python_pin, is_submount),

    WHOLE(ph_stream),
    FIELD(ph_stream, read_start),
    FIELD(ph_stream, read_end),
    FIELD(ph_stream, unsent_start),
    FIELD(ph_stream, unsent_end),
    FIELD(ph_stream, read),
    FIELD(ph_stream, unsent),

    WHOLE(ph_net_offloads),
    FIELD(ph_net_offloads, csum),
    FIELD(ph_net_offloads, tso4),
    FIELD(ph_net_offloads, tso6),
    FIELD(ph_net_offloads, ecn),
    FIELD(ph_net_offloads, uso),

    WHOLE(ph_rate),
    FIELD(ph_rate, per_second),
    FIELD(ph_rate, burst),

    WHOLE(ph_rate_limit),
    FIELD(ph_rate_limit, bytes),
    FIELD(ph_rate_limit, packets),

    WHOLE(ph_cost),
    FIELD(ph_cost, bytes),
    FIELD(ph_cost, packets),

    WHOLE(ph_net_source),
    FIELD(ph_net_source, is_checked),
    FIELD(ph_net_source, has_ipv4),
    FIELD(ph_net_source, mac),
    FIELD(ph_net_source, ipv4),

    WHOLE(ph_net_setup),
    FIELD(ph_net_setup, stream),
    FIELD(ph_net_setup, receive_limiter),
    FIELD(ph_net_setup, transmit_limiter),
    FIELD(ph_net_setup, fd),
    FIELD(ph_net_setup, mergeable),
    FIELD(ph_net_setup, expected_bytes),
    FIELD(ph_net_setup, received_flags),
    FIELD(ph_net_setup, offloads),
    FIELD(ph_net_setup, source),

    WHOLE(ph_net_state),
    FIELD(ph_net_state, receive_error),
    FIELD(ph_net_state, transmit_error),
    FIELD(ph_net_state, held),

    {.name = NULL},
};

static const struct ph_constant CONSTANTS[] = {
    CONSTANT(PH_PYTHON),
    CONSTANT(PH_OUTCOME_PYTHON),
    CONSTANT(PH_OUTCOME_STOPPED),
    CONSTANT(PH_OUTCOME_WOKEN),
    CONSTANT(PH_OUTCOME_FAILED),
    CONSTANT(PH_OUTCOME_BOUND),
    CONSTANT(PH_FILE),
    CONSTANT(PH_DIRECTORY),
    CONSTANT(PH_KEEP_ID),
    CONSTANT(PH_SLOT_SHIFT),
    CONSTANT(PH_MAX_WATCHED),
    CONSTANT(PH_NET_HEADER_BYTES),
    CONSTANT(PH_ETHERNET_HEADER_BYTES),
    CONSTANT(PH_MAX_FRAME_BYTES),
    CONSTANT(PH_MAX_STREAM_FRAME_BYTES),
    CONSTANT(PH_MOST_HELD),
    CONSTANT(PH_START_BYTES),
    {.name = NULL},
};

/* Name, result, arguments. */
#define FUNCTIONS(LIST)                                                                            \
    LIST(ph_queue_new, struct ph_queue *, const struct ph_queue_setup *)                           \
    LIST(ph_queue_state, struct ph_queue_state *, struct ph_queue *)                               \
    LIST(ph_queue_stop, void, struct ph_queue *)                                                   \
    LIST(ph_queue_set_call, void, struct ph_queue *, int)                                          \
    LIST(ph_queue_set_wake, void, struct ph_queue *, int)                                          \
    LIST(ph_queue_interrupt, void, struct ph_queue *)                                              \
    LIST(ph_queue_close, void, struct ph_queue *)                                                  \
    LIST(ph_queue_free, void, struct ph_queue *)                                                   \
    LIST(ph_lost_install, bool, int)                                                               \
    LIST(ph_lost_watch, int, void *, uint64_t)                                                     \
    LIST(ph_lost_is, bool, int)                                                                    \
    LIST(ph_lost_unwatch, bool, int)                                                               \
    LIST(ph_worker_new, struct ph_worker *, bool)                                                  \
    LIST(ph_worker_delete, void, struct ph_worker *)                                               \
    LIST(ph_mounts_new, struct ph_mounts *, void)                                                  \
    LIST(ph_mounts_put, bool, struct ph_mounts *, uint64_t, struct ph_mount *)                     \
    LIST(ph_mounts_free, void, struct ph_mounts *)                                                 \
    LIST(ph_serve, int, struct ph_queue *, struct ph_worker *, struct ph_mounts *)                 \
    LIST(ph_fuse_serve, int64_t, struct ph_worker *, struct ph_mount *, const struct ph_chain *)   \
    LIST(ph_mount_new, struct ph_mount *, const struct ph_mount_setup *)                           \
    LIST(ph_mount_release, void, struct ph_mount *)                                                \
    LIST(ph_mount_node_count, uint64_t, struct ph_mount *)                                         \
    LIST(ph_mount_node_limit, uint64_t, struct ph_mount *)                                         \
    LIST(ph_mount_open_file_limit, uint64_t, struct ph_mount *)                                    \
    LIST(ph_mount_open_file_count, uint64_t, struct ph_mount *)                                    \
    LIST(ph_python_pin_node, bool, struct ph_mount *, uint64_t, struct ph_python_pin *)            \
    LIST(ph_python_count_and_pin, bool, struct ph_mount *, int, uint64_t, const char *,            \
         struct ph_python_pin *)                                                                   \
    LIST(ph_python_pin_open_file, bool, struct ph_mount *, uint64_t, uint32_t,                     \
         struct ph_python_pin *)                                                                   \
    LIST(ph_node_unpin, void, struct ph_mount *, struct ph_node *)                                 \
    LIST(ph_node_forget, void, struct ph_mount *, uint64_t, uint64_t)                              \
    LIST(ph_node_renamed, void, struct ph_mount *, const struct ph_node *, const char *)           \
    LIST(ph_removal_begin, struct ph_node *, struct ph_mount *, const struct ph_node *,            \
         const char *)                                                                             \
    LIST(ph_removal_end, void, struct ph_mount *, struct ph_node *, const struct ph_node *,        \
         const char *, bool)                                                                       \
    LIST(ph_open_file_add, uint64_t, struct ph_mount *, struct ph_node *, int, enum ph_kind)       \
    LIST(ph_open_file_unpin, void, struct ph_mount *, struct ph_open_file *)                       \
    LIST(ph_open_file_remove, bool, struct ph_mount *, uint64_t, enum ph_kind)                     \
    LIST(ph_open_file_mark_posix_locked, void, struct ph_open_file *)                              \
    LIST(ph_net_new, struct ph_net *, const struct ph_net_setup *)                                 \
    LIST(ph_net_free, void, struct ph_net *)                                                       \
    LIST(ph_net_state, struct ph_net_state *, struct ph_net *)                                     \
    LIST(ph_net_receive, int, struct ph_queue *, struct ph_net *)                                  \
    LIST(ph_net_transmit, int, struct ph_queue *, struct ph_net *)                                 \
    LIST(ph_limiter_new, struct ph_limiter *, int)                                                 \
    LIST(ph_limiter_free, void, struct ph_limiter *)                                               \
    LIST(ph_limiter_set, void, struct ph_limiter *, const struct ph_rate_limit *, uint64_t)        \
    LIST(ph_limiter_admits, bool, struct ph_limiter *, uint64_t, const struct ph_cost *)           \
    LIST(ph_limiter_charge, void, struct ph_limiter *, uint64_t, const struct ph_cost *)           \
    LIST(ph_limiter_arm, uint64_t, struct ph_limiter *, uint64_t)                                  \
    LIST(ph_directory_lock, int64_t, struct ph_open_file *)                                        \
    LIST(ph_directory_unlock, void, struct ph_open_file *)

#define IS_DECLARED_SO(function, result, ...)                                                      \
    _Static_assert(                                                                                \
        __builtin_types_compatible_p(__typeof__(function), __typeof__(result(__VA_ARGS__))),       \
        #function " has another signature");
#define ROW(function, result, ...) {.name = #function, .signature = #result "(" #__VA_ARGS__ ")"},

FUNCTIONS(IS_DECLARED_SO)

static const struct ph_function FUNCTION_TABLE[] = {FUNCTIONS(ROW){.name = NULL}};

const struct ph_layout *ph_layouts(void)
{
    return LAYOUTS;
}

const struct ph_constant *ph_constants(void)
{
    return CONSTANTS;
}

const struct ph_function *ph_functions(void)
{
    return FUNCTION_TABLE;
}

"""Python's declarations of the native library: its constants, structures and functions.

C declares the same (native/*.h), and `comparison` refuses a library whose declarations differ. A
structure is named after its name in C: PhSpan is struct ph_span. Must not know how the library is
found, or what it is used for.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Final

SLOT_SHIFT: Final = 44
"""The bits of a node's id from this one up are the slot of its share; the slot is 0 if the device
has one share. The bits below have room for a million new nodes a second for half a year."""

PYTHON: Final = -(1 << 63)
"""Result of ph_fuse_serve: it leaves the request to Python."""

MAX_WATCHED: Final = 1 << 16
"""Mappings of guest memory that may be watched at a time."""

FILE: Final = 1
DIRECTORY: Final = 2
KEEP_ID: Final = 0xFFFF_FFFF
"""Value of `uid` or `gid` in PhRules that shows the file's own."""

MOST_HELD: Final = 64
"""Chains that a virtio-net queue holds at a time."""

NET_HEADER_BYTES: Final = 12
ETHERNET_HEADER_BYTES: Final = 14
MAX_FRAME_BYTES: Final = 65550
"""The longest frame (virtio 1.2, section 5.1.6.3.1)."""

START_BYTES: Final = 64
"""How much of a frame that a guest sends is copied and checked."""

MAX_STREAM_FRAME_BYTES: Final = 65535
"""The longest frame of a stream."""

_LENGTH_BYTES: Final = 4
"""Before each frame of a stream."""

XATTR_NAME_MAX: Final = 255
"""Longest name of an extended attribute (limits.h)."""

_u16, _u32, _u64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
_i32, _i64, _ptr, _bool = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_bool
_name = ctypes.c_char_p


class Outcome(enum.IntEnum):
    """Why a native loop returned (native/outcome.h)."""

    PYTHON = 1
    STOPPED = 2
    WOKEN = 3
    FAILED = 4
    BOUND = 5


class PhSpan(ctypes.Structure):
    """struct ph_span."""

    _fields_ = (("gpa", _u64), ("size_bytes", _u64), ("address", _ptr))


class PhQueueState(ctypes.Structure):
    """struct ph_queue_state."""

    next_avail: int
    seen_avail: int
    next_used: int
    signalled_used: int
    signal_due: int
    unsignalled: int
    unsignalled_bytes: int
    spin_ns: int

    _fields_ = (
        ("next_avail", _u16),
        ("seen_avail", _u16),
        ("next_used", _u16),
        ("signalled_used", _u16),
        ("signal_due", _u32),
        ("unsignalled", _u32),
        ("unsignalled_bytes", _u64),
        ("spin_ns", _u64),
    )


class PhCounters(ctypes.Structure):
    """struct ph_counters: what the native loop counts of one queue.

    Attributes:
        requests: Chains that were completed.
        bytes_in: Bytes that the guest offered for reading.
        bytes_out: Bytes that were written to the guest.
        highest_slot: Highest slot that a buffer was in, counted from 1.
        frames_dropped: Frames of a virtio-net queue that were dropped.
        frames_spoofed: Those that were sent under an address of another station.
        throttled: Times that it waited for its rate limit.
    """

    requests: int
    bytes_in: int
    bytes_out: int
    highest_slot: int
    frames_dropped: int
    frames_spoofed: int
    throttled: int

    _fields_ = (
        ("requests", _u64),
        ("bytes_in", _u64),
        ("bytes_out", _u64),
        ("highest_slot", _u64),
        ("frames_dropped", _u64),
        ("frames_spoofed", _u64),
        ("throttled", _u64),
    )


class PhQueueSetup(ctypes.Structure):
    """struct ph_queue_setup."""

    _fields_ = (
        ("desc", _ptr),
        ("avail", _ptr),
        ("used", _ptr),
        ("spans", _ptr),
        ("counters", _ptr),
        ("span_count", _u32),
        ("size", _u32),
        ("kick_fd", _i32),
        ("call_fd", _i32),
        ("stop_fd", _i32),
        ("event_idx", _u32),
        ("indirect", _u32),
        ("counts_slots", _u32),
    )


class PhRules(ctypes.Structure):
    """struct ph_rules."""

    _fields_ = (
        ("ino_mask", _u64),
        ("uid", _u32),
        ("gid", _u32),
        ("keep_dir", _u32),
        ("keep_file", _u32),
        ("valid_s", _u32),
        ("open_flags", _u32),
        ("opendir_flags", _u32),
        ("read_only", _u32),
        ("writeback", _u32),
        ("submounts", _u32),
        ("umask", _u32),
        ("acls", _u32),
        ("to_python", _u32),
        ("keeps_modes", _u32),
        ("no_set_ids", _u32),
        ("kept_capability", ctypes.c_char * (XATTR_NAME_MAX + 1)),
    )


class PhMountSetup(ctypes.Structure):
    """struct ph_mount_setup."""

    _fields_ = (
        ("rules", PhRules),
        ("root_id", _u64),
        ("nodes", _u64),
        ("all_nodes", _u64),
        ("descriptors", _u64),
        ("handles", _u64),
        ("all_handles", _u64),
        ("root_fd", _i32),
        ("descriptor_limit", _i32),
        ("may_switch", _u32),
        ("alone", _u32),
    )


class PhPythonPin(ctypes.Structure):
    """struct ph_python_pin."""

    id: int
    ino_mask: int
    pinned: int
    fd: int
    node_fd: int
    kind: int
    is_submount: int

    _fields_ = (
        ("id", _u64),
        ("ino_mask", _u64),
        ("pinned", _ptr),
        ("fd", _i32),
        ("node_fd", _i32),
        ("kind", _u32),
        ("is_submount", _u32),
    )


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("iov_base", _ptr), ("iov_len", _u64))


class PhChain(ctypes.Structure):
    """struct ph_chain."""

    _fields_ = (
        ("readable", ctypes.POINTER(IoVec)),
        ("writable", ctypes.POINTER(IoVec)),
        ("readable_count", _u32),
        ("writable_count", _u32),
        ("readable_bytes", _u64),
        ("writable_bytes", _u64),
    )


class PhStream(ctypes.Structure):
    """struct ph_stream: what is left of a stream between two calls.

    Attributes:
        read_start: Where in `read` the next length begins.
        read_end: Where in `read` the bytes end that were read ahead.
        unsent_start: Where in `unsent` the rest of a frame begins that was sent in part.
        unsent_end: Where it ends.
    """

    read_start: int
    read_end: int
    unsent_start: int
    unsent_end: int

    _fields_ = (
        ("read_start", _u32),
        ("read_end", _u32),
        ("unsent_start", _u32),
        ("unsent_end", _u32),
        ("read", ctypes.c_uint8 * (2 * (_LENGTH_BYTES + MAX_STREAM_FRAME_BYTES))),
        ("unsent", ctypes.c_uint8 * (_LENGTH_BYTES + MAX_STREAM_FRAME_BYTES)),
    )


class PhNetOffloads(ctypes.Structure):
    """struct ph_net_offloads."""

    _fields_ = (("csum", _u32), ("tso4", _u32), ("tso6", _u32), ("ecn", _u32), ("uso", _u32))


class PhRate(ctypes.Structure):
    """struct ph_rate."""

    _fields_ = (("per_second", _u64), ("burst", _u64))


class PhRateLimit(ctypes.Structure):
    """struct ph_rate_limit."""

    _fields_ = (("bytes", PhRate), ("packets", PhRate))


class PhCost(ctypes.Structure):
    """struct ph_cost."""

    _fields_ = (("bytes", _u64), ("packets", _u64))


class PhNetSource(ctypes.Structure):
    """struct ph_net_source."""

    _fields_ = (
        ("is_checked", _u32),
        ("has_ipv4", _u32),
        ("mac", ctypes.c_uint8 * 6),
        ("ipv4", ctypes.c_uint8 * 4),
    )


class PhNetSetup(ctypes.Structure):
    """struct ph_net_setup."""

    _fields_ = (
        ("stream", _ptr),
        ("receive_limiter", _ptr),
        ("transmit_limiter", _ptr),
        ("fd", _i32),
        ("mergeable", _u32),
        ("expected_bytes", _u32),
        ("received_flags", _u32),
        ("offloads", PhNetOffloads),
        ("source", PhNetSource),
    )


class PhNetState(ctypes.Structure):
    """struct ph_net_state.

    Attributes:
        receive_error: The errno for which the receiving loop failed.
        transmit_error: The same of the sending loop.
        held: Chains that wait for frames now.
    """

    receive_error: int
    transmit_error: int
    held: int

    _fields_ = (("receive_error", _i32), ("transmit_error", _i32), ("held", _u32))


class PhLayout(ctypes.Structure):
    """struct ph_layout: a field, or with an empty field name the whole structure."""

    name: bytes | None
    field: bytes
    offset: int
    size_bytes: int

    _fields_ = (("name", _name), ("field", _name), ("offset", _u64), ("size_bytes", _u64))


class PhConstant(ctypes.Structure):
    """struct ph_constant."""

    name: bytes | None
    value: int

    _fields_ = (("name", _name), ("value", _i64))


class PhFunction(ctypes.Structure):
    """struct ph_function."""

    name: bytes | None
    signature: bytes

    _fields_ = (("name", _name), ("signature", _name))


STRUCTURES: Final[dict[str, type[ctypes.Structure]]] = {
    "ph_layout": PhLayout,
    "ph_constant": PhConstant,
    "ph_function": PhFunction,
    "ph_span": PhSpan,
    "ph_queue_state": PhQueueState,
    "ph_counters": PhCounters,
    "ph_queue_setup": PhQueueSetup,
    "iovec": IoVec,
    "ph_chain": PhChain,
    "ph_rules": PhRules,
    "ph_mount_setup": PhMountSetup,
    "ph_python_pin": PhPythonPin,
    "ph_stream": PhStream,
    "ph_net_offloads": PhNetOffloads,
    "ph_rate": PhRate,
    "ph_rate_limit": PhRateLimit,
    "ph_cost": PhCost,
    "ph_net_source": PhNetSource,
    "ph_net_setup": PhNetSetup,
    "ph_net_state": PhNetState,
}
"""By their names in C."""

CONSTANTS: Final[dict[str, int]] = {
    "PH_PYTHON": PYTHON,
    "PH_OUTCOME_PYTHON": Outcome.PYTHON,
    "PH_OUTCOME_STOPPED": Outcome.STOPPED,
    "PH_OUTCOME_WOKEN": Outcome.WOKEN,
    "PH_OUTCOME_FAILED": Outcome.FAILED,
    "PH_OUTCOME_BOUND": Outcome.BOUND,
    "PH_FILE": FILE,
    "PH_DIRECTORY": DIRECTORY,
    "PH_KEEP_ID": KEEP_ID,
    "PH_SLOT_SHIFT": SLOT_SHIFT,
    "PH_MAX_WATCHED": MAX_WATCHED,
    "PH_NET_HEADER_BYTES": NET_HEADER_BYTES,
    "PH_ETHERNET_HEADER_BYTES": ETHERNET_HEADER_BYTES,
    "PH_MAX_FRAME_BYTES": MAX_FRAME_BYTES,
    "PH_MAX_STREAM_FRAME_BYTES": MAX_STREAM_FRAME_BYTES,
    "PH_MOST_HELD": MOST_HELD,
    "PH_START_BYTES": START_BYTES,
}

FUNCTIONS: Final[dict[str, tuple[object, tuple[object, ...]]]] = {
    "ph_queue_new": (_ptr, (ctypes.POINTER(PhQueueSetup),)),
    "ph_queue_state": (ctypes.POINTER(PhQueueState), (_ptr,)),
    "ph_queue_stop": (None, (_ptr,)),
    "ph_queue_set_call": (None, (_ptr, _i32)),
    "ph_queue_set_wake": (None, (_ptr, _i32)),
    "ph_queue_interrupt": (None, (_ptr,)),
    "ph_queue_close": (None, (_ptr,)),
    "ph_queue_free": (None, (_ptr,)),
    "ph_lost_install": (_bool, (_i32,)),
    "ph_lost_watch": (_i32, (_ptr, _u64)),
    "ph_lost_is": (_bool, (_i32,)),
    "ph_lost_unwatch": (_bool, (_i32,)),
    "ph_worker_new": (_ptr, (_bool,)),
    "ph_worker_delete": (None, (_ptr,)),
    "ph_mounts_new": (_ptr, ()),
    "ph_mounts_put": (_bool, (_ptr, _u64, _ptr)),
    "ph_mounts_free": (None, (_ptr,)),
    "ph_serve": (_i32, (_ptr, _ptr, _ptr)),
    "ph_fuse_serve": (_i64, (_ptr, _ptr, ctypes.POINTER(PhChain))),
    "ph_mount_new": (_ptr, (ctypes.POINTER(PhMountSetup),)),
    "ph_mount_release": (None, (_ptr,)),
    "ph_mount_node_count": (_u64, (_ptr,)),
    "ph_mount_node_limit": (_u64, (_ptr,)),
    "ph_mount_open_file_limit": (_u64, (_ptr,)),
    "ph_mount_open_file_count": (_u64, (_ptr,)),
    "ph_python_pin_node": (_bool, (_ptr, _u64, ctypes.POINTER(PhPythonPin))),
    "ph_python_count_and_pin": (_bool, (_ptr, _i32, _u64, _name, ctypes.POINTER(PhPythonPin))),
    "ph_python_pin_open_file": (_bool, (_ptr, _u64, _u32, ctypes.POINTER(PhPythonPin))),
    "ph_node_unpin": (None, (_ptr, _ptr)),
    "ph_node_forget": (None, (_ptr, _u64, _u64)),
    "ph_node_renamed": (None, (_ptr, _ptr, _name)),
    "ph_removal_begin": (_ptr, (_ptr, _ptr, _name)),
    "ph_removal_end": (None, (_ptr, _ptr, _ptr, _name, _bool)),
    "ph_open_file_add": (_u64, (_ptr, _ptr, _i32, _u32)),
    "ph_open_file_unpin": (None, (_ptr, _ptr)),
    "ph_open_file_remove": (_bool, (_ptr, _u64, _u32)),
    "ph_net_new": (_ptr, (ctypes.POINTER(PhNetSetup),)),
    "ph_net_free": (None, (_ptr,)),
    "ph_net_state": (ctypes.POINTER(PhNetState), (_ptr,)),
    "ph_net_receive": (_i32, (_ptr, _ptr)),
    "ph_net_transmit": (_i32, (_ptr, _ptr)),
    "ph_limiter_new": (_ptr, (_i32,)),
    "ph_limiter_free": (None, (_ptr,)),
    "ph_limiter_set": (None, (_ptr, ctypes.POINTER(PhRateLimit), _u64)),
    "ph_limiter_admits": (_bool, (_ptr, _u64, ctypes.POINTER(PhCost))),
    "ph_limiter_charge": (None, (_ptr, _u64, ctypes.POINTER(PhCost))),
    "ph_limiter_arm": (_u64, (_ptr, _u64)),
    "ph_directory_lock": (_i64, (_ptr,)),
    "ph_directory_unlock": (None, (_ptr,)),
    "ph_open_file_mark_posix_locked": (None, (_ptr,)),
}
"""Result and arguments of each function that Python calls."""

TABLES: Final[dict[str, type[ctypes.Structure]]] = {
    "ph_layouts": PhLayout,
    "ph_constants": PhConstant,
    "ph_functions": PhFunction,
}
"""Functions that return what the library declares; each table ends with a row without a name."""

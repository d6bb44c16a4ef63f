"""The native fast path: its library, loaded if it was built, and the layouts that both sides know.

Owns the C declarations (native/ring.h, table.h, serve.h). The library takes no Python objects and
calls none; ctypes gives up the interpreter's lock for every call. Must not know what is done with
it.
"""

from __future__ import annotations

import ctypes
import enum
import logging
import os
from pathlib import Path
from typing import Final

_LOG = logging.getLogger(__name__)

ABI: Final = 5
"""PH_ABI in serve.h: a library that was built from other headers is not used."""

SWITCH: Final = "PORTHOLE_NATIVE"
"""Environment variable; "0" leaves the library alone."""


class Outcome(enum.IntEnum):
    """enum ph_outcome: why ph_serve returned."""

    PYTHON = 1
    STOPPED = 2
    WOKEN = 3


PYTHON: Final = -(1 << 63)
"""PH_PYTHON: ph_fuse_serve leaves the request to Python."""

FILE: Final = 1
DIRECTORY: Final = 2
KEEP_ID: Final = 0xFFFF_FFFF

_PATH: Final = Path(__file__).with_name("libfastpath.so")

_u16, _u32, _u64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
_i32, _ptr, _bool = ctypes.c_int32, ctypes.c_void_p, ctypes.c_bool


class Span(ctypes.Structure):
    """struct ph_span."""

    _fields_ = (("gpa", _u64), ("size_bytes", _u64), ("address", _ptr))


class RingState(ctypes.Structure):
    """struct ph_ring_state."""

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


class RingSetup(ctypes.Structure):
    """struct ph_ring_setup."""

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


class Rules(ctypes.Structure):
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
        ("to_python", _u32),
    )


class MountSetup(ctypes.Structure):
    """struct ph_mount_setup."""

    _fields_ = (
        ("rules", Rules),
        ("root_id", _u64),
        ("nodes", _u64),
        ("descriptors", _u64),
        ("handles", _u64),
        ("root_fd", _i32),
        ("descriptor_limit", _i32),
        ("may_switch", _u32),
    )


class Seen(ctypes.Structure):
    """struct ph_seen."""

    id: int
    pin: int
    fd: int
    node_fd: int
    kind: int

    _fields_ = (("id", _u64), ("pin", _ptr), ("fd", _i32), ("node_fd", _i32), ("kind", _u32))


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", _ptr), ("length", ctypes.c_size_t))


class Chain(ctypes.Structure):
    """struct ph_chain."""

    _fields_ = (
        ("readable", ctypes.POINTER(IoVec)),
        ("writable", ctypes.POINTER(IoVec)),
        ("readable_count", _u32),
        ("writable_count", _u32),
        ("readable_bytes", _u64),
        ("writable_bytes", _u64),
    )


_FUNCTIONS: Final[dict[str, tuple[object, tuple[object, ...]]]] = {
    "ph_abi": (_u32, ()),
    "ph_ring_new": (_ptr, (ctypes.POINTER(RingSetup),)),
    "ph_ring_state": (ctypes.POINTER(RingState), (_ptr,)),
    "ph_ring_stop": (None, (_ptr,)),
    "ph_ring_set_call": (None, (_ptr, _i32)),
    "ph_ring_set_wake": (None, (_ptr, _i32)),
    "ph_ring_close": (None, (_ptr,)),
    "ph_ring_free": (None, (_ptr,)),
    "ph_worker_new": (_ptr, ()),
    "ph_worker_delete": (None, (_ptr,)),
    "ph_mounts_new": (_ptr, ()),
    "ph_mounts_put": (_bool, (_ptr, _u64, _ptr)),
    "ph_mounts_free": (None, (_ptr,)),
    "ph_serve": (_i32, (_ptr, _ptr, _ptr)),
    "ph_fuse_serve": (ctypes.c_int64, (_ptr, _ptr, ctypes.POINTER(Chain))),
    "ph_mount_new": (_ptr, (ctypes.POINTER(MountSetup),)),
    "ph_mount_release": (None, (_ptr,)),
    "ph_mount_node_count": (_u64, (_ptr,)),
    "ph_mount_node_limit": (_u64, (_ptr,)),
    "ph_mount_open_file_count": (_u64, (_ptr,)),
    "ph_see_node": (_bool, (_ptr, _u64, ctypes.POINTER(Seen))),
    "ph_see_held": (_bool, (_ptr, _i32, ctypes.POINTER(Seen))),
    "ph_see_open_file": (_bool, (_ptr, _u64, _u32, ctypes.POINTER(Seen))),
    "ph_node_unpin": (None, (_ptr, _ptr)),
    "ph_node_forget": (None, (_ptr, _u64, _u64)),
    "ph_open_file_add": (_u64, (_ptr, _ptr, _i32, _u32)),
    "ph_open_file_unpin": (None, (_ptr, _ptr)),
    "ph_open_file_remove": (_bool, (_ptr, _u64, _u32)),
    "ph_directory_hold": (None, (_ptr,)),
    "ph_directory_let_go": (None, (_ptr,)),
    "ph_open_file_mark_posix_locked": (None, (_ptr,)),
}


ACTIVE: Final = "active"
"""What `status` is when the library serves."""


def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(SWITCH) == "0":
        return None, f"off: {SWITCH} is 0"
    if not _PATH.exists():
        return None, "absent: it was not built, for want of a C compiler (cc)"
    try:
        library = ctypes.CDLL(str(_PATH), use_errno=True)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        if library.ph_abi() != ABI:
            raise OSError("it is of another version; build it again: make setup")
    except (OSError, AttributeError) as error:
        _LOG.warning("the native fast path cannot be used: %s", error)
        return None, f"unusable: {error}"
    return library, ACTIVE


_loaded: Final = _load()

library: Final = _loaded[0]
"""The library; None when it was not built, does not fit, or is switched off."""

status: Final[str] = _loaded[1]
"""ACTIVE, or why the library is not used; for people."""

"""Pure parts of mini_init, as a library that tests call."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parents[2] / "services/guest_init/mini_init"
_PURE: Final = (
    "clock.c",
    "device_tree.c",
    "files.c",
    "frames.c",
    "listening.c",
    "published.c",
)
# Instead of log.c, which writes to the kernel's log.
_SILENCE: Final = '#include "log.h"\nvoid say(const char *format, ...) { (void)format; }\n'

COMPILER: Final = os.environ.get("CC") or shutil.which("cc")


class Pool(ctypes.Structure):
    """struct pool of published.h."""

    _fields_ = (
        ("source", ctypes.c_int),
        ("base", ctypes.c_uint64),
        ("size_bytes", ctypes.c_uint64),
    )


class FrameReader(ctypes.Structure):
    """struct frame_reader of frames.h."""

    _fields_ = (
        ("start", ctypes.c_size_t),
        ("end", ctypes.c_size_t),
        ("skipped", ctypes.c_uint64),
        ("too_long", ctypes.c_uint32),
        ("bytes", ctypes.c_uint8 * (2 * (8 + 65536))),
    )


class Ports(ctypes.Structure):
    """struct ports of listening.h."""

    _fields_ = (("count", ctypes.c_uint32), ("numbers", ctypes.c_uint32 * 256))


class Listening(ctypes.Structure):
    """struct listening of listening.h."""

    _fields_ = (("ipv4", Ports), ("ipv6", Ports))


def build(directory: Path) -> ctypes.CDLL:
    """Build the library in a directory, and load it."""
    silence, library = directory / "silence.c", directory / "pure.so"
    silence.write_text(_SILENCE)
    command = [
        *shlex.split(COMPILER or "cc"),
        f"@{SOURCES.parents[2] / 'compile_flags.txt'}",
        *("-Werror", "-shared", "-fPIC", "-O1", f"-I{SOURCES}", "-o", str(library)),
        str(silence),
        *(str(SOURCES / name) for name in _PURE),
    ]
    subprocess.run(command, check=True)
    pure = ctypes.CDLL(str(library))
    pure.pool_read.restype = Pool
    pure.frame_room.restype = ctypes.POINTER(ctypes.c_uint8)
    pure.frame_take.restype = ctypes.c_bool
    pure.pool_parse_number.restype = ctypes.c_bool
    pure.pool_parse_log.restype = ctypes.c_bool
    return pure

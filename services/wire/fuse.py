"""The FUSE protocol, 7.31 to 7.39: numbers and layouts as in include/uapi/linux/fuse.h of Linux.

Owns opcodes, flags and `struct.Struct` layouts; names are the kernel's (opcodes without `FUSE_`,
layouts in upper case without `fuse_`). Padding is `x` in a layout, so it is neither given nor
returned. Unknown opcodes and flags are plain integers here and are refused by policy elsewhere.
Driver and device both import this module.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple

FUSE_KERNEL_VERSION: Final = 7
FUSE_KERNEL_MINOR_VERSION: Final = 39
"""Newest minor version whose layouts are here; STATX came with it."""
FUSE_MIN_MINOR_VERSION: Final = 31
"""Oldest minor version whose layouts are exactly these; virtio-fs came with it (Linux 5.4)."""
FUSE_ROOT_ID: Final = 1
FUSE_MIN_READ_BUFFER: Final = 8192


class Opcode(enum.IntEnum):
    """enum fuse_opcode. Compare with `==` or `in`; never call it on a number from a peer."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


NO_REPLY: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY})
"""Opcodes that are never answered."""
ERROR_REPLY: Final = frozenset({Opcode.INTERRUPT})
"""Opcodes that are answered by an error only, and only if there is room for it."""


def opcode_name(opcode: int) -> str:
    """Name an opcode for people; unknown ones are named by their number."""
    member = Opcode._value2member_map_.get(opcode)
    return member.name if member is not None else f"opcode {opcode}"


# fuse_setattr_in.valid
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

# fuse_open_out.open_flags
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

# fuse_init_in / fuse_init_out: bits 0 to 31 travel in flags, bits 32 to 63 in flags2.
FUSE_ASYNC_READ: Final = 1 << 0
FUSE_POSIX_LOCKS: Final = 1 << 1
FUSE_FILE_OPS: Final = 1 << 2
FUSE_ATOMIC_O_TRUNC: Final = 1 << 3
FUSE_EXPORT_SUPPORT: Final = 1 << 4
FUSE_BIG_WRITES: Final = 1 << 5
FUSE_DONT_MASK: Final = 1 << 6
FUSE_SPLICE_WRITE: Final = 1 << 7
FUSE_SPLICE_MOVE: Final = 1 << 8
FUSE_SPLICE_READ: Final = 1 << 9
FUSE_FLOCK_LOCKS: Final = 1 << 10
FUSE_HAS_IOCTL_DIR: Final = 1 << 11
FUSE_AUTO_INVAL_DATA: Final = 1 << 12
FUSE_DO_READDIRPLUS: Final = 1 << 13
FUSE_READDIRPLUS_AUTO: Final = 1 << 14
FUSE_ASYNC_DIO: Final = 1 << 15
FUSE_WRITEBACK_CACHE: Final = 1 << 16
FUSE_NO_OPEN_SUPPORT: Final = 1 << 17
FUSE_PARALLEL_DIROPS: Final = 1 << 18
FUSE_HANDLE_KILLPRIV: Final = 1 << 19
FUSE_POSIX_ACL: Final = 1 << 20
FUSE_ABORT_ERROR: Final = 1 << 21
FUSE_MAX_PAGES: Final = 1 << 22
FUSE_CACHE_SYMLINKS: Final = 1 << 23
FUSE_NO_OPENDIR_SUPPORT: Final = 1 << 24
FUSE_EXPLICIT_INVAL_DATA: Final = 1 << 25
FUSE_MAP_ALIGNMENT: Final = 1 << 26
FUSE_SUBMOUNTS: Final = 1 << 27
FUSE_HANDLE_KILLPRIV_V2: Final = 1 << 28
FUSE_SETXATTR_EXT: Final = 1 << 29
FUSE_INIT_EXT: Final = 1 << 30
FUSE_SECURITY_CTX: Final = 1 << 32
FUSE_HAS_INODE_DAX: Final = 1 << 33
FUSE_CREATE_SUPP_GROUP: Final = 1 << 34
FUSE_HAS_EXPIRE_ONLY: Final = 1 << 35
FUSE_DIRECT_IO_ALLOW_MMAP: Final = 1 << 36

# Flags of single requests.
FUSE_RELEASE_FLUSH: Final = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FUSE_GETATTR_FH: Final = 1 << 0
FUSE_LK_FLOCK: Final = 1 << 0
FUSE_WRITE_CACHE: Final = 1 << 0
FUSE_WRITE_LOCKOWNER: Final = 1 << 1
FUSE_WRITE_KILL_SUIDGID: Final = 1 << 2
FUSE_READ_LOCKOWNER: Final = 1 << 1
FUSE_FSYNC_FDATASYNC: Final = 1 << 0
FUSE_OPEN_KILL_SUIDGID: Final = 1 << 0
FUSE_SETXATTR_ACL_KILL_SGID: Final = 1 << 0
FUSE_ATTR_SUBMOUNT: Final = 1 << 0

# enum fuse_ext_type: 0 to 31 are security contexts.
FUSE_MAX_NR_SECCTX: Final = 31
FUSE_EXT_GROUPS: Final = 32

IN_HEADER: Final = Struct("<IIQQIIIH2x")
OUT_HEADER: Final = Struct("<IiQ")
ATTR: Final = Struct("<6Q10I")
ATTR_FLAGS: Final = Struct("<I")
"""The last field of fuse_attr."""
ENTRY_OUT: Final = Struct("<4Q2I")
"""fuse_entry_out without the `attr` that follows it."""
ATTR_OUT: Final = Struct("<QI4x")
"""fuse_attr_out without the `attr` that follows it."""
FORGET_IN: Final = Struct("<Q")
BATCH_FORGET_IN: Final = Struct("<I4x")
FORGET_ONE: Final = Struct("<QQ")
GETATTR_IN: Final = Struct("<I4xQ")
SETATTR_IN: Final = Struct("<I4x6Q4I4x2I4x")
MKNOD_IN: Final = Struct("<3I4x")
MKDIR_IN: Final = Struct("<II")
RENAME_IN: Final = Struct("<Q")
RENAME2_IN: Final = Struct("<QI4x")
LINK_IN: Final = Struct("<Q")
OPEN_IN: Final = Struct("<II")
OPEN_OUT: Final = Struct("<QI4x")
CREATE_IN: Final = Struct("<4I")
RELEASE_IN: Final = Struct("<QIIQ")
FLUSH_IN: Final = Struct("<Q8xQ")
READ_IN: Final = Struct("<QQIIQI4x")
WRITE_IN: Final = Struct("<QQIIQI4x")
WRITE_OUT: Final = Struct("<I4x")
STATFS_OUT: Final = Struct("<5Q3I28x")
FSYNC_IN: Final = Struct("<QI4x")
SETXATTR_IN: Final = Struct("<III4x")
"""The layout after FUSE_SETXATTR_EXT was negotiated."""
SETXATTR_COMPAT_IN: Final = Struct("<II")
"""The layout otherwise (FUSE_COMPAT_SETXATTR_IN_SIZE)."""
GETXATTR_IN: Final = Struct("<I4x")
GETXATTR_OUT: Final = Struct("<I4x")
FILE_LOCK: Final = Struct("<QQII")
LK_IN: Final = Struct("<QQQQIII4x")
LK_OUT: Final = FILE_LOCK
ACCESS_IN: Final = Struct("<I4x")
INIT_IN: Final = Struct("<5I44x")
INIT_COMPAT_IN: Final = Struct("<4I")
"""FUSE_INIT of a driver without FUSE_INIT_EXT (before 7.36)."""
INIT_OUT: Final = Struct("<4IHHIIHHI28x")
INTERRUPT_IN: Final = Struct("<Q")
FALLOCATE_IN: Final = Struct("<QQQI4x")
DIRENT: Final = Struct("<QQII")
"""fuse_dirent without the name; the whole is padded to 8 bytes."""
LSEEK_IN: Final = Struct("<QQI4x")
LSEEK_OUT: Final = Struct("<Q")
COPY_FILE_RANGE_IN: Final = Struct("<7Q")
SYNCFS_IN: Final = Struct("<8x")
STATX_IN: Final = Struct("<I4xQII")
STATX_OUT: Final = Struct("<QII16x")
"""fuse_statx_out without the `stat` that follows it."""
SX_TIME: Final = Struct("<qI4x")
STATX: Final = Struct("<IIQ3IH2x4Q" + "qI4x" * 4 + "4I112x")
EXT_HEADER: Final = Struct("<II")


class InHeader(NamedTuple):
    """IN_HEADER, the start of every request; `total_extlen` counts 8-byte units."""

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int = 0


class OutHeader(NamedTuple):
    """OUT_HEADER, the start of every reply; `error` is 0 or a negative errno."""

    len: int
    error: int
    unique: int


class InitIn(NamedTuple):
    """INIT_IN."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int


class InitOut(NamedTuple):
    """INIT_OUT; `max_write` and `max_readahead` in bytes, `time_gran` in nanoseconds."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    map_alignment: int
    flags2: int


class Attr(NamedTuple):
    """ATTR; `blocks` counts 512-byte units."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class EntryOut(NamedTuple):
    """ENTRY_OUT; the ATTR follows it on the wire."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int


class SetattrIn(NamedTuple):
    """SETATTR_IN; which fields count is in `valid` (FATTR_*)."""

    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class LkIn(NamedTuple):
    """LK_IN; `end` is inclusive, `type` an F_RDLCK, F_WRLCK or F_UNLCK."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int


class StatfsOut(NamedTuple):
    """STATFS_OUT; blocks in units of `frsize`."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class CopyFileRangeIn(NamedTuple):
    """COPY_FILE_RANGE_IN; offsets and `len` in bytes."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    len: int
    flags: int


class Dirent(NamedTuple):
    """DIRENT; `off` is the cookie that continues after this entry, `type` a DT_*."""

    ino: int
    off: int
    namelen: int
    type: int


def align8(length: int) -> int:
    """Round up to 8 bytes (FUSE_REC_ALIGN)."""
    return (length + 7) & ~7

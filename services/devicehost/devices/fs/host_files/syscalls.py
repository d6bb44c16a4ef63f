"""System calls that the Python standard library does not offer.

Owns the C signatures. Each function is one call and raises OSError for every failure. Must not know
FUSE or shares.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPENAT2: Final = 437  # the same on every architecture, like all numbers from 424 on
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_CONFINED: Final = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_CLONE_FS: Final = 0x200
_MAX_HANDLE_BYTES: Final = 128
_FILE_HANDLE: Final = Struct("<Ii")
"""struct file_handle without its bytes: handle_bytes, handle_type (name_to_handle_at(2))."""

NAME_MAX: Final = 255
"""Longest name of an entry, in bytes (limits.h)."""

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

_STATX: Final = Struct("<IIQIIIH2xQQQQ" + "qI4x" * 4 + "4IQ104x")
_STATX_BTIME: Final = 0x800
_STATX_STATUS: Final = 0x7FF | _STATX_BTIME | 0x1000 | 0x4000
"""STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID, and from Linux 6.8 on STATX_MNT_ID_UNIQUE: an id
that is never used again."""
_OPEN_HOW: Final = Struct("=QQQ")
"""struct open_how: flags, mode, resolve."""
_FLOCK: Final = Struct("hh4xqqi4x")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid."""
OFFSET_MAX: Final = (1 << 63) - 1
"""The last byte that a record lock may cover; a lock up to here goes on to the end of the file."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class RecordLock(NamedTuple):
    """A lock on the bytes `start` to `end`, inclusive; `kind` is F_RDLCK, F_WRLCK or F_UNLCK."""

    kind: int
    start: int
    end: int


FileKey: TypeAlias = "tuple[int, int, int, int]"
"""Mount, major and minor number of the file system, and inode number."""


class Statx(NamedTuple):
    """struct statx without its padding; times are (seconds, nanoseconds) in two fields each.

    `mount` is the id of the mount through which the file was reached; 0 before Linux 5.8.
    """

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atime_ns: int
    btime: int
    btime_ns: int
    ctime: int
    ctime_ns: int
    mtime: int
    mtime_ns: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int
    mount: int = 0

    @property
    def dev(self) -> int:
        """Device number of the file system."""
        return os.makedev(self.dev_major, self.dev_minor)

    @property
    def file(self) -> FileKey:
        """What tells the file from all others while it exists."""
        return self.mount, self.dev_major, self.dev_minor, self.ino

    @property
    def born_ns(self) -> int:
        """When the file was made, in nanoseconds since 1970; 0: its file system does not tell."""
        return self.btime * 10**9 + self.btime_ns if self.mask & _STATX_BTIME else 0


def _declare(name: str, *arguments: type) -> ctypes._NamedFuncPointer:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_int, _uint, _u64, _str, _ptr = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_char_p,
    ctypes.c_void_p,
)
_libc.syscall.argtypes = (ctypes.c_long, _int, _str, _ptr, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long
_libc.getdents64.argtypes = (_int, _ptr, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
_renameat2 = _declare("renameat2", _int, _str, _int, _str, _uint)
_fallocate = _declare("fallocate", _int, _int, ctypes.c_int64, ctypes.c_int64)
_syncfs = _declare("syncfs", _int)
_utimensat = _declare("utimensat", _int, _str, _ptr, _int)
_statx = _declare("statx", _int, _str, _int, _uint, _ptr)
_unshare = _declare("unshare", _int)
_name_to_handle_at = _declare("name_to_handle_at", _int, _str, _ptr, _ptr, _int)
_open_by_handle_at = _declare("open_by_handle_at", _int, _str, _int)
_fcntl = _declare("fcntl", _int, _int, _ptr)
_flock = _declare("flock", _int, _int)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def open_beneath(dir_fd: int, name: bytes, flags: int, mode: int = 0) -> int:
    """Open `name` under a directory; it follows no link and reaches nothing above the directory.

    Args:
        dir_fd: The directory; may be an O_PATH descriptor.
        name: One component.
        flags: O_*; O_NOFOLLOW and O_CLOEXEC are added. With O_PATH a symlink itself is opened.
        mode: Mode of a new file, 0 to 0o7777; 0 unless O_CREAT or O_TMPFILE is given.

    Raises:
        OSError: An error of openat2(2); ELOOP for a symlink without O_PATH, EXDEV for an escape.
    """
    how = _OPEN_HOW.pack(flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, _CONFINED)
    return _checked(_libc.syscall(_SYS_OPENAT2, dir_fd, name, how, _OPEN_HOW.size))


def getdents(fd: int, size_bytes: int) -> bytes:
    """Read directory entries (struct linux_dirent64) from a directory's position on.

    Raises:
        OSError: An error of getdents64(2); EINVAL when `size_bytes` does not hold one entry.
    """
    buffer = ctypes.create_string_buffer(size_bytes)
    length = _checked(_libc.getdents64(fd, buffer, size_bytes))
    return buffer.raw[:length]


def rename(old_dir_fd: int, old: bytes, new_dir_fd: int, new: bytes, flags: int) -> None:
    """Rename one component to another; flags are RENAME_*.

    Raises:
        OSError: An error of renameat2(2).
    """
    _checked(_renameat2(old_dir_fd, old, new_dir_fd, new, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve, punch, zero, collapse or insert a range of a file; bytes below 2^63.

    Raises:
        OSError: An error of fallocate(2).
        OverflowError: A number does not fit.
    """
    if max(offset, length) >> 63:
        raise OverflowError("an offset or length does not fit 63 bits")
    _checked(_fallocate(fd, mode, offset, length))


def syncfs(fd: int) -> None:
    """Write back the file system that holds `fd`; the kernel refuses O_PATH descriptors.

    Raises:
        OSError: An error of syncfs(2).
    """
    _checked(_syncfs(fd))


def set_times(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times given as (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT); follows links.

    Seconds before 1970 may be negative, or in two's complement of 64 bits.

    Raises:
        OSError: An error of utimensat(2).
    """
    _checked(_utimensat(_AT_FDCWD, path, (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime)), 0))


def statx(fd: int, mask: int) -> Statx:
    """Read the attributes of the file of an O_PATH or ordinary descriptor.

    Raises:
        OSError: An error of statx(2).
    """
    return _read_statx(fd, b"", mask)


def status_of(fd: int) -> Statx:
    """Read the status of the file of an O_PATH or ordinary descriptor.

    Raises:
        OSError: An error of statx(2).
    """
    return _read_statx(fd, b"", _STATX_STATUS)


def status_at(dir_fd: int, name: bytes) -> Statx:
    """Read the status of an entry of a directory; a symlink is not followed.

    Raises:
        OSError: An error of statx(2).
    """
    return _read_statx(dir_fd, name, _STATX_STATUS)


def name_to_handle(fd: int) -> bytes:
    """Make a handle (struct file_handle) of the file of an O_PATH or ordinary descriptor.

    Raises:
        OSError: An error of name_to_handle_at(2); EOPNOTSUPP when the file system has no handles.
    """
    room = _FILE_HANDLE.pack(_MAX_HANDLE_BYTES, 0)
    buffer = ctypes.create_string_buffer(room, _FILE_HANDLE.size + _MAX_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    _checked(_name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH))
    length, _ = _FILE_HANDLE.unpack_from(buffer)
    return buffer.raw[: _FILE_HANDLE.size + length]


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the file that `name_to_handle` made a handle of; O_CLOEXEC is added.

    Args:
        mount_fd: Ordinary descriptor of anything on the same file system.
        handle: What `name_to_handle` returned.
        flags: O_*.

    Raises:
        OSError: An error of open_by_handle_at(2); ESTALE when the file is gone, EPERM without
            CAP_DAC_READ_SEARCH.
    """
    return _checked(_open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC))


def set_record_lock(fd: int, lock: RecordLock, *, wait: bool) -> None:
    """Set or clear a record lock that belongs to the open file description of `fd`.

    Raises:
        OSError: An error of fcntl(2) of F_OFD_SETLK: EAGAIN when another lock is in the way.
        InterruptedError: With `wait`: a signal came; no lock has changed.
    """
    _checked(_fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _pack_lock(lock)))


def find_record_lock(fd: int, lock: RecordLock) -> RecordLock:
    """Return a lock that conflicts with one of `fd`'s description; its kind is F_UNLCK for none.

    Raises:
        OSError: An error of fcntl(2) of F_OFD_GETLK.
    """
    packed = _pack_lock(lock)
    _checked(_fcntl(fd, fcntl.F_OFD_GETLK, packed))
    kind, _, start, length, _ = _FLOCK.unpack(packed.raw)
    return RecordLock(kind, start, start + length - 1 if length else OFFSET_MAX)


def set_file_lock(fd: int, operation: int) -> None:
    """Set, convert or clear the flock(2) lock of an open file description.

    Raises:
        OSError: An error of flock(2): EAGAIN with LOCK_NB when another lock is in the way.
        InterruptedError: Without LOCK_NB: a signal came. A lock that was to be converted is gone.
    """
    _checked(_flock(fd, operation))


def use_private_umask(mask: int) -> bool:
    """Give the calling thread a umask (and working directory) that no other thread shares.

    Where a container's seccomp profile forbids unshare(2), the umask is that of the whole process.

    Returns:
        Whether no other thread shares it.

    Raises:
        OSError: An error of unshare(2) other than EPERM.
    """
    private = False
    with contextlib.suppress(PermissionError):
        _checked(_unshare(_CLONE_FS))
        private = True
    os.umask(mask)
    return private


def _read_statx(fd: int, name: bytes, mask: int) -> Statx:
    buffer = ctypes.create_string_buffer(_STATX.size)
    _checked(_statx(fd, name, _AT_EMPTY_PATH | _AT_SYMLINK_NOFOLLOW, mask, buffer))
    return Statx(*_STATX.unpack(buffer))


def _pack_lock(lock: RecordLock) -> ctypes.Array[ctypes.c_char]:
    length = 0 if lock.end == OFFSET_MAX else lock.end - lock.start + 1
    packed = _FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, length, 0)
    return ctypes.create_string_buffer(packed, _FLOCK.size)

"""The calls of the tables: each takes words and returns a word, or raises OSError.

Must not know that the calls come from another process.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import stat
import time
import zlib
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls
from tests.support.acls import ACCESS, DEFAULT, acl, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ALICE: Final = 20001
BOB: Final = 20002
TEAM: Final = 20003
"""A group of Alice's besides her own."""

NAMES: Final = {"root": 0, "alice": ALICE, "bob": BOB, "team": TEAM, "-": -1}
GROUPS: Final = {0: [0], ALICE: [ALICE, TEAM], BOB: [BOB]}

_RENAME: Final = {"noreplace": 1, "exchange": 2, "whiteout": 4}
_FALLOCATE: Final = {"keep": 1, "punch": 2, "collapse": 8, "zero": 16, "insert": 32}
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_SYMLINK_FOLLOW: Final = 0x400

_ACLS: Final = {b"access": ACCESS, b"default": DEFAULT}

_STATX_MODE: Final = 0x2
_STATX_BTIME: Final = 0x800

_COARSE_CLOCK: Final = 5
"""CLOCK_REALTIME_COARSE (linux/time.h), the clock of file timestamps."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Calls:
    """The calls, relative to the directory that was entered last."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}
        self._marks: dict[bytes, os.stat_result] = {}

    def enter(self, directory: bytes) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._marks.clear()
        os.chdir(directory)
        os.umask(0o022)

    def umask(self, mask: bytes) -> None:
        os.umask(int(mask, 8))

    # Making and removing.

    def make(self, kind: bytes, name: bytes, mode: bytes = b"0644") -> None:
        """Make a file of any kind, with exactly this mode."""
        if kind == b"file":
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif kind == b"dir":
            os.mkdir(name)
        elif kind == b"symlink":
            os.symlink(b"nowhere", name)
            return
        elif kind == b"socket":
            self.bind(name)
        else:
            bits = {b"fifo": stat.S_IFIFO, b"block": stat.S_IFBLK, b"char": stat.S_IFCHR}[kind]
            os.mknod(name, bits | 0o600, os.makedev(7, 300))
        os.chmod(name, int(mode, 8))

    def create(self, name: bytes, mode: bytes = b"0644") -> None:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(mode, 8)))

    def mkdir(self, name: bytes, mode: bytes = b"0755") -> None:
        os.mkdir(name, int(mode, 8))

    def mkfifo(self, name: bytes, mode: bytes = b"0644") -> None:
        os.mkfifo(name, int(mode, 8))

    def mknod(self, kind: bytes, name: bytes, mode: bytes, major: bytes, minor: bytes) -> None:
        bits = {
            b"file": stat.S_IFREG,
            b"fifo": stat.S_IFIFO,
            b"block": stat.S_IFBLK,
            b"char": stat.S_IFCHR,
            b"socket": stat.S_IFSOCK,
            b"dir": stat.S_IFDIR,
        }[kind]
        os.mknod(name, bits | int(mode, 8), os.makedev(int(major), int(minor)))

    def bind(self, name: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)

    def symlink(self, target: bytes, name: bytes) -> None:
        os.symlink(target, name)

    def link(self, name: bytes, new: bytes) -> None:
        os.link(name, new, follow_symlinks=False)

    def unlink(self, name: bytes) -> None:
        os.unlink(name)

    def rmdir(self, name: bytes) -> None:
        os.rmdir(name)

    def rename(self, old: bytes, new: bytes, *flags: bytes) -> None:
        bits = sum(_RENAME[os.fsdecode(flag)] for flag in flags)
        _checked(_libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, bits))

    # Attributes.

    def chmod(self, name: bytes, mode: bytes) -> None:
        os.chmod(name, int(mode, 8))

    def chown(self, name: bytes, uid: bytes, gid: bytes) -> None:
        os.chown(name, _id(uid), _id(gid))

    def lchown(self, name: bytes, uid: bytes, gid: bytes) -> None:
        os.lchown(name, _id(uid), _id(gid))

    def truncate(self, name: bytes, size: bytes) -> None:
        _checked(_libc.truncate(name, ctypes.c_long(int(size))))

    def utimens(self, name: bytes, atime: bytes, mtime: bytes) -> None:
        self._utimens(name, atime, mtime, 0)

    def lutimens(self, name: bytes, atime: bytes, mtime: bytes) -> None:
        self._utimens(name, atime, mtime, _AT_SYMLINK_NOFOLLOW)

    def _utimens(self, name: bytes, atime: bytes, mtime: bytes, flags: int) -> None:
        times = (_Timespec * 2)(_time(atime), _time(mtime))
        _checked(_libc.utimensat(_AT_FDCWD, name, times, flags))

    def setxattr(self, name: bytes, key: bytes, value: bytes, *flags: bytes) -> None:
        bits = sum({b"create": os.XATTR_CREATE, b"replace": os.XATTR_REPLACE}[f] for f in flags)
        os.setxattr(name, key, _data(value), bits, follow_symlinks=False)

    def getxattr(self, name: bytes, key: bytes) -> str:
        return _show(os.getxattr(name, key, follow_symlinks=False))

    def removexattr(self, name: bytes, key: bytes) -> None:
        os.removexattr(name, key, follow_symlinks=False)

    def listxattr(self, name: bytes) -> str:
        return " ".join(sorted(os.listxattr(name, follow_symlinks=False))) or "none"

    def setacl(self, name: bytes, text: bytes, key: bytes = b"access") -> None:
        """Set an ACL, with users and groups by their names here."""
        entries = [entry.split(":") for entry in text.decode().split(",")]
        ids = ",".join(f"{kind}:{NAMES.get(who, who)}:{bits}" for kind, who, bits in entries)
        os.setxattr(name, _ACLS[key], acl(ids))

    def getacl(self, name: bytes, key: bytes = b"access") -> str:
        return text_of(os.getxattr(name, _ACLS[key]))

    def dropacl(self, name: bytes, key: bytes = b"access") -> None:
        os.removexattr(name, _ACLS[key])

    def cachedmode(self, name: bytes) -> str:
        """Return the mode as a program gets it that asks for nothing else, as `stat -c %a`."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW)
        try:
            return f"{stat.S_IMODE(syscalls.statx(fd, _STATX_MODE).mode):04o}"
        finally:
            os.close(fd)

    def mode(self, name: bytes) -> str:
        return f"{stat.S_IMODE(os.lstat(name).st_mode):04o}"

    def owner(self, name: bytes) -> str:
        status = os.lstat(name)
        words = {number: word for word, number in NAMES.items()}
        return (
            f"{words.get(status.st_uid, status.st_uid)}:{words.get(status.st_gid, status.st_gid)}"
        )

    def kind(self, name: bytes) -> str:
        return stat.filemode(os.lstat(name).st_mode)[0]

    def device(self, name: bytes) -> str:
        number = os.lstat(name).st_rdev
        return f"{os.major(number)}:{os.minor(number)}"

    def size(self, name: bytes) -> str:
        return str(os.lstat(name).st_size)

    def nlink(self, name: bytes) -> str:
        return str(os.lstat(name).st_nlink)

    def times(self, name: bytes) -> str:
        status = os.lstat(name)
        return f"{status.st_atime_ns} {status.st_mtime_ns}"

    def stat(self, name: bytes) -> str:
        return describe(os.stat(name))

    def lstat(self, name: bytes) -> str:
        return describe(os.lstat(name))

    def access(self, name: bytes, mode: bytes) -> None:
        bits = sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK, "f": 0}[c] for c in mode.decode())
        if _libc.access(name, bits) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def mark(self, name: bytes) -> None:
        """Remember a file's times, and wait until the file system's clock has gone on."""
        status = self._marks[name] = os.lstat(name)
        while time.clock_gettime_ns(_COARSE_CLOCK) <= max(status.st_ctime_ns, status.st_mtime_ns):
            time.sleep(0.001)

    def changed(self, name: bytes) -> str:
        """Which of mtime and ctime have changed since the mark."""
        before, now = self._marks[name], os.lstat(name)
        found = "m" * (now.st_mtime_ns != before.st_mtime_ns)
        return found + "c" * (now.st_ctime_ns != before.st_ctime_ns) or "none"

    # Data. A number that starts with "#" is an open file.

    def open(self, name: bytes, flags: bytes, mode: bytes = b"0", file: bytes = b"") -> None:
        bits = 0
        for flag in flags.decode().split("|"):
            bits |= getattr(os, f"O_{flag.upper()}")
        fd = os.open(name, bits, int(mode, 8))
        if file:
            self._files[file] = fd
        else:
            os.close(fd)

    def close(self, file: bytes) -> None:
        os.close(self._files.pop(file))

    def setfl(self, file: bytes, flags: bytes) -> None:
        """Change the flags of an open file: append, or 0 for none."""
        fcntl.fcntl(self._files[file], fcntl.F_SETFL, {b"append": os.O_APPEND, b"0": 0}[flags])

    def write(self, file: bytes, data: bytes) -> str:
        return str(os.write(self._files[file], _data(data)))

    def pwrite(self, file: bytes, offset: bytes, data: bytes) -> str:
        return str(os.pwrite(self._files[file], _data(data), int(offset)))

    def pread(self, file: bytes, offset: bytes, count: bytes) -> str:
        return _show(os.pread(self._files[file], int(count), int(offset)))

    def put(self, name: bytes, data: bytes) -> None:
        """Write a whole file that exists."""
        with open(name, "r+b", buffering=0) as file:
            file.write(_data(data))

    def get(self, name: bytes) -> str:
        with open(name, "rb", buffering=0) as file:
            return _show(file.read())

    def mapput(self, file: bytes, offset: bytes, data: bytes) -> None:
        """Store into a shared mapping of the whole file, and write it back."""
        with mmap.mmap(self._files[file], 0, mmap.MAP_SHARED) as mapped:
            mapped[int(offset) : int(offset) + len(data)] = data
            mapped.flush()

    def mapget(self, file: bytes, offset: bytes, count: bytes) -> str:
        with mmap.mmap(self._files[file], 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            return _show(mapped[int(offset) : int(offset) + int(count)])

    def ftruncate(self, file: bytes, size: bytes) -> None:
        _checked(_libc.ftruncate(self._files[file], ctypes.c_long(int(size))))

    def fchmod(self, file: bytes, mode: bytes) -> None:
        os.fchmod(self._files[file], int(mode, 8))

    def fchown(self, file: bytes, uid: bytes, gid: bytes) -> None:
        os.fchown(self._files[file], _id(uid), _id(gid))

    def fstat(self, file: bytes) -> str:
        return describe(os.fstat(self._files[file]))

    def fsync(self, file: bytes) -> None:
        os.fsync(self._files[file])

    def flink(self, file: bytes, new: bytes) -> None:
        """Give an open file a name; see linkat(2) for O_TMPFILE."""
        path = b"/proc/self/fd/%d" % self._files[file]
        _checked(_libc.linkat(_AT_FDCWD, path, _AT_FDCWD, new, _AT_SYMLINK_FOLLOW))

    def fallocate(self, file: bytes, mode: bytes, offset: bytes, length: bytes) -> None:
        bits = sum(_FALLOCATE[word] for word in mode.decode().split("|") if word != "0")
        at, count = ctypes.c_long(int(offset)), ctypes.c_long(int(length))
        _checked(_libc.fallocate(self._files[file], bits, at, count))

    def lseek(self, file: bytes, offset: bytes, whence: bytes) -> str:
        how = getattr(os, f"SEEK_{whence.decode().upper()}")
        return str(os.lseek(self._files[file], int(offset), how))

    def copyrange(self, source: bytes, at: bytes, target: bytes, to: bytes, count: bytes) -> str:
        files = self._files
        return str(os.copy_file_range(files[source], files[target], int(count), int(at), int(to)))

    def blocks(self, name: bytes) -> str:
        return str(os.lstat(name).st_blocks)

    def readlink(self, name: bytes) -> str:
        return _show(os.readlink(name))

    def ls(self, name: bytes = b".") -> str:
        return " ".join(sorted(map(_show, os.listdir(name)))) or "empty"

    def tree(self, name: bytes) -> str:
        """Describe everything below a directory, without facts that depend on time and place."""
        return "\n".join(f"{_show(path)} {describe(status)}" for path, status in _walk(name))

    def exactly(self, name: bytes) -> str:
        """Return everything below a directory, with all of stat(2) except device and atime."""
        return "\n".join(
            f"{_show(path)} {describe(status)} {status.st_ino} {status.st_nlink} {status.st_size} "
            f"{status.st_blocks} {status.st_mtime_ns} {status.st_ctime_ns} {_born(path)}"
            for path, status in _walk(name)
        )

    def connect(self, name: bytes) -> None:
        """Talk over a socket of the file system."""
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as calling:
            listening.bind(name)
            listening.listen()
            calling.connect(name)

    def fifo(self, name: bytes) -> str:
        """Send something through a FIFO."""
        reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(name, os.O_WRONLY)
        try:
            os.write(writer, b"passed")
            return _show(os.read(reader, 10))
        finally:
            os.close(reader)
            os.close(writer)


def describe(status: os.stat_result) -> str:
    """Return the part of a file's status that does not depend on when and where it was made."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    return (
        f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} size {size} "
        f"links {links} device {status.st_rdev:x}"
    )


def _walk(name: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    for directory, below, files in os.walk(name):
        below.sort()
        for entry in sorted(below + files):
            path = os.path.join(directory, entry)
            yield path[len(name) :], os.lstat(path)


def _born(path: bytes) -> str:
    """Return the time of birth of a file, from statx(2)."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = syscalls.statx(fd, _STATX_BTIME)
    finally:
        os.close(fd)
    return f"{status.btime}.{status.btime_ns:09}" if status.mask & _STATX_BTIME else "unknown"


def _show(data: bytes) -> str:
    return (
        data.decode("latin-1") if len(data) < 100 else f"{len(data)} bytes, {zlib.crc32(data):08x}"
    )


def _data(word: bytes) -> bytes:
    """A word, or "<character>*<count>"."""
    character, times, count = word.partition(b"*")
    return character * int(count) if times and len(character) == 1 else word


def _id(word: bytes) -> int:
    name = word.decode()
    return NAMES[name] if name in NAMES else int(name)


def _time(word: bytes) -> _Timespec:
    if word in (b"now", b"omit"):
        return _Timespec(0, _UTIME_NOW if word == b"now" else _UTIME_OMIT)
    seconds, _, nanoseconds = word.decode().partition(".")
    return _Timespec(int(seconds), int(nanoseconds or "0"))

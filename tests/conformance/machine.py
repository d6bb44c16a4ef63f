"""Random calls on a share and on a plain directory: the same errno, status and contents."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.conformance.driver_tree import DriverTree
from tests.conformance.host_tree import HostTree, Status

if TYPE_CHECKING:
    from collections.abc import Callable

Tree = HostTree | DriverTree
T = TypeVar("T")

_NAMES = (b"a", b"b", b"\xffc", b"n" * 255)
_NAME = st.sampled_from(_NAMES)
PATHS = _NAME | _NAME | st.lists(_NAME, min_size=1, max_size=3).map(b"/".join)
LONG_NAMES = st.just(b"n" * 256)
MODES = st.sampled_from([0o000, 0o600, 0o644, 0o755, 0o4711, 0o2755, 0o2644, 0o1777])
OFFSETS = st.sampled_from([0, 1, 511, 4095, 4096, 4097, 65536, 262144, 1 << 20, (1 << 32) + 5])
SIZES = st.sampled_from([0, 1, 7, 4096, 4097, 10000, 262145])
DATA = st.builds(lambda size, byte: bytes([byte]) * size, SIZES, st.integers(1, 255))
ACCESS = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
FLAGS = st.sampled_from([0, os.O_TRUNC, os.O_APPEND, os.O_EXCL, os.O_APPEND | os.O_TRUNC])
IDS = st.sampled_from([-1, 0, 1000, 4_000_000_000])
TIMES = st.sampled_from([0, 1, -1, 1_500_000_000_123_456_789, -(10**18) + 7, 2**33 * 10**9])
XATTRS = st.sampled_from([b"user.a", b"user.\xff", b"trusted.b", b"wrong", b"user.", b""])
CLOSE_RANGE_MOST = 12
_RENAMES = st.sampled_from([0, 0, 1, 2, 4])
_COLLAPSE_RANGE = 8
_INSERT_RANGE = 32
_FALLOCATES = st.sampled_from([0, 1, 3, 2, 16, 17, _COLLAPSE_RANGE, _INSERT_RANGE])
_RESERVE = {0, 1, 16, 17}
"""Modes of fallocate(2) that may leave blocks which were never written."""
_BLOCK_BYTES = 4096
_WHENCES = st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE])


class ShareMachine(RuleBasedStateMachine):
    """A subclass makes the trees that are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.share, self.model = self.trees()
        self.handles: list[tuple[int, int]] = []
        self.reserved = False

    def trees(self) -> tuple[Tree, HostTree]:
        """Make two empty directories: through the share, and plain."""
        raise NotImplementedError

    def _both(self, call: Callable[[Any], T]) -> T | None:
        """Make a call on both; returns its result, or None when both refuse."""
        found, expected = _outcome(call, self.share), _outcome(call, self.model)
        assert found == expected, f"the share: {found}; the directory: {expected}"
        return None if isinstance(expected, str) else expected

    def _handle_call(self, which: int, call: Callable[[Any, int], object]) -> None:
        mine, models = self.handles[which % len(self.handles)]
        found = _outcome(lambda tree: call(tree, mine), self.share)
        expected = _outcome(lambda tree: call(tree, models), self.model)
        assert found == expected, f"the share: {found}; the directory: {expected}"

    def _kind(self, path: bytes) -> int:
        try:
            return stat.S_IFMT(self.model.stat(path).mode)
        except OSError:
            return 0

    def _open_both(self, call: Callable[[Any], int]) -> None:
        def keep(tree: Tree) -> bool:
            opened[tree is self.model] = call(tree)
            return True

        opened = [0, 0]
        if self._both(keep):
            self.handles.append((opened[0], opened[1]))
            if len(self.handles) > CLOSE_RANGE_MOST:
                self.close(0)

    @initialize()
    def populate(self) -> None:
        """Begin with some files, without which most random calls would fail."""
        for directory in (b"b", b"b/b"):
            self.mkdir(directory, 0o755)
        for path in (b"a", b"b/a"):
            self.create(path, os.O_RDWR, 0, 0o644)
            self.pwrite(-1, 4095, b"text")

    has_handles = precondition(lambda self: bool(self.handles))

    # Names.

    @rule(path=PATHS | LONG_NAMES, mode=MODES.map(lambda mode: mode | 0o700))
    def mkdir(self, path: bytes, mode: int) -> None:
        self._both(lambda tree: tree.mkdir(path, mode))

    @rule(path=PATHS, mode=MODES)
    def mkfifo(self, path: bytes, mode: int) -> None:
        self._both(lambda tree: tree.mkfifo(path, mode))

    @rule(path=PATHS, text=PATHS | st.sampled_from([b"/", b"..", b"\xfe" * 4095]))
    def symlink(self, path: bytes, text: bytes) -> None:
        self._both(lambda tree: tree.symlink(text, path))

    @rule(path=PATHS)
    def readlink(self, path: bytes) -> None:
        self._both(lambda tree: tree.readlink(path))

    @rule(path=PATHS, new=PATHS | LONG_NAMES)
    def link(self, path: bytes, new: bytes) -> None:
        if self._kind(path) not in (0, stat.S_IFDIR):  # which a kernel refuses itself
            self._both(lambda tree: tree.link(path, new))

    @rule(path=PATHS | LONG_NAMES)
    def unlink(self, path: bytes) -> None:
        self._both(lambda tree: tree.unlink(path))

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        self._both(lambda tree: tree.rmdir(path))

    @rule(path=PATHS, new=PATHS | LONG_NAMES, flags=_RENAMES)
    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        if self._kind(path):  # a kernel looks both up first
            self._both(lambda tree: tree.rename(path, new, flags))

    @rule(path=PATHS)
    def names(self, path: bytes) -> None:
        if self._kind(path) in (0, stat.S_IFDIR, stat.S_IFREG):
            self._both(lambda tree: tree.names(path))

    # Attributes.

    @rule(path=PATHS | LONG_NAMES)
    def lstat(self, path: bytes) -> None:
        self._both(lambda tree: _comparable(tree.stat(path)))

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: bytes, mode: int) -> None:
        kind = self._kind(path)
        if kind != stat.S_IFLNK:
            self._both(lambda tree: tree.chmod(path, mode | (0o700 if kind == stat.S_IFDIR else 0)))

    @rule(path=PATHS, uid=IDS, gid=IDS)
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        if (uid, gid) != (-1, -1):  # which needs no request
            self._both(lambda tree: tree.chown(path, uid, gid))

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: bytes, size: int) -> None:
        if self._kind(path) != stat.S_IFLNK:
            self._both(lambda tree: tree.truncate(path, size))

    @rule(path=PATHS, atime=TIMES, mtime=TIMES)
    def set_times(self, path: bytes, atime: int, mtime: int) -> None:
        def both(tree: Tree) -> tuple[int, int]:
            tree.set_times(path, atime, mtime)
            return tree.times(path)

        self._both(both)

    @rule(path=PATHS, name=XATTRS, value=st.binary(max_size=40), flags=st.sampled_from([0, 1, 2]))
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._both(lambda tree: tree.setxattr(path, name, value, flags))

    @rule(path=PATHS, name=XATTRS)
    def getxattr(self, path: bytes, name: bytes) -> None:
        self._both(lambda tree: tree.getxattr(path, name))

    @rule(path=PATHS, name=XATTRS)
    def removexattr(self, path: bytes, name: bytes) -> None:
        self._both(lambda tree: tree.removexattr(path, name))

    @rule(path=PATHS)
    def listxattr(self, path: bytes) -> None:
        self._both(lambda tree: tree.listxattr(path))

    # Open files.

    @rule(path=PATHS | LONG_NAMES, access=ACCESS, flags=FLAGS, mode=MODES)
    def create(self, path: bytes, access: int, flags: int, mode: int) -> None:
        # A FIFO would wait for its other end, and a share has no devices.
        if self._kind(path) not in (stat.S_IFIFO, stat.S_IFCHR):
            self._open_both(lambda tree: tree.open(path, access | flags | os.O_CREAT, mode))

    @rule(path=PATHS, access=ACCESS, flags=FLAGS)
    def open(self, path: bytes, access: int, flags: int) -> None:
        if self._kind(path) in (0, stat.S_IFREG, stat.S_IFLNK):
            self._open_both(lambda tree: tree.open(path, access | flags & ~os.O_EXCL, 0))

    @rule(path=PATHS, mode=MODES)
    def tmpfile(self, path: bytes, mode: int) -> None:
        if self._kind(path) in (0, stat.S_IFDIR):
            self._open_both(lambda tree: tree.tmpfile(path, mode))

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST))
    def close(self, which: int) -> None:
        self._handle_call(which, lambda tree, handle: tree.close(handle))
        del self.handles[which % len(self.handles)]

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST), offset=OFFSETS, size=SIZES)
    def pread(self, which: int, offset: int, size: int) -> None:
        self._handle_call(which, lambda tree, handle: tree.pread(handle, size, offset))

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST), offset=OFFSETS, data=DATA)
    def pwrite(self, which: int, offset: int, data: bytes) -> None:
        self._handle_call(which, lambda tree, handle: tree.pwrite(handle, data, offset))

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST), size=OFFSETS)
    def ftruncate(self, which: int, size: int) -> None:
        self._handle_call(which, lambda tree, handle: tree.ftruncate(handle, size))

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST), mode=_FALLOCATES, offset=OFFSETS, size=SIZES)
    def fallocate(self, which: int, mode: int, offset: int, size: int) -> None:
        if mode in (_COLLAPSE_RANGE, _INSERT_RANGE) and isinstance(self.share, HostTree):
            return  # Linux asks no FUSE server for these
        self.reserved |= mode in _RESERVE
        self._handle_call(which, lambda tree, handle: tree.fallocate(handle, mode, offset, size))

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST), offset=OFFSETS, whence=_WHENCES)
    def lseek(self, which: int, offset: int, whence: int) -> None:
        if not self.reserved:  # the page cache decides whether a reserved block counts as data
            self._handle_call(which, lambda tree, handle: tree.lseek(handle, offset, whence))

    @has_handles
    @rule(
        which=st.integers(0, CLOSE_RANGE_MOST),
        other=st.integers(0, CLOSE_RANGE_MOST),
        at=OFFSETS,
        to=OFFSETS,
        size=SIZES,
    )
    def copy(self, which: int, other: int, at: int, to: int, size: int) -> None:
        mine, models = self.handles[other % len(self.handles)]
        self._handle_call(
            which,
            lambda tree, handle: tree.copy(
                handle, at, models if tree is self.model else mine, to, size
            ),
        )

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST))
    def fstat(self, which: int) -> None:
        self._handle_call(which, lambda tree, handle: _comparable(tree.fstat(handle)))

    @has_handles
    @rule(which=st.integers(0, CLOSE_RANGE_MOST), path=PATHS)
    def link_handle(self, which: int, path: bytes) -> None:
        self._handle_call(which, lambda tree, handle: tree.link_handle(handle, path))

    def teardown(self) -> None:
        """Check that both trees are equal, and that all that was held is given back."""
        while self.handles:
            self.close(0)
        self.compare(b".")

    def compare(self, directory: bytes) -> None:
        names = self._both(lambda tree: tree.names(directory))
        for name in names or []:
            path = directory + b"/" + name
            status = self._both(lambda tree: _comparable(tree.stat(path)))  # noqa: B023
            self._both(lambda tree: tree.listxattr(path))  # noqa: B023
            kind = stat.S_IFMT(status.mode) if status else 0
            if kind == stat.S_IFDIR:
                self.compare(path)
            elif kind == stat.S_IFLNK:
                self._both(lambda tree: tree.readlink(path))  # noqa: B023
            elif kind == stat.S_IFREG:
                self._both(lambda tree: _contents(tree, path))  # noqa: B023


def _outcome(call: Callable[[Any], T], tree: Tree) -> T | str:
    try:
        return call(tree)
    except OSError as error:
        return f"refused with {errno.errorcode.get(error.errno or 0, error)}"


def _comparable(status: Status) -> Status:
    """Leave out size and links of a directory, which depend on the file system."""
    return status._replace(size=0, nlink=0) if stat.S_ISDIR(status.mode) else status


def _contents(tree: Tree, path: bytes) -> dict[int, bytes]:
    """Return a file's blocks without those of zeros, since it may have 4 GiB of holes.

    A block that is reserved and unwritten is a hole or data, depending on the page cache.
    """
    handle = tree.open(path, os.O_RDONLY, 0)
    found: dict[int, bytes] = {}
    position = 0
    try:
        while True:
            try:
                position = tree.lseek(handle, position, os.SEEK_DATA) & -_BLOCK_BYTES
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            data = tree.pread(handle, 1 << 20, position)
            for start in range(0, len(data), _BLOCK_BYTES):
                block = data[start : start + _BLOCK_BYTES]
                if any(block):
                    found[position + start] = block
            position += len(data)
    finally:
        tree.close(handle)

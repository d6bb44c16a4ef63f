"""A hundred thousand files, listed while others come and go, and known by few descriptors."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import threading
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from services.devicehost import fastpath
from tests.conformance.conftest import ON_DISK, directory, tmpfs
from tests.support.mounted_shares import MountedShares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fuse

FILES: Final = 100_000
STAYS: Final = [f"stays-{number:06}" for number in range(FILES)]
DESCRIPTORS: Final = 2048
DEADLINE_S: Final = 240.0
MARKED: Final = 1000
"""The test seeks back to one entry in so many."""
THERE: Final = 64
"""Number of temporary files that exist at a time."""
CHANGED: Final = 50
"""The test changes one file in so many."""

_D_NAME_AT: Final = 19
"""Offset of d_name in struct dirent of 64-bit Linux."""

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("opendir", "readdir"):
    getattr(_libc, _name).restype = ctypes.c_void_p
_libc.opendir.argtypes = (ctypes.c_char_p,)
_libc.readdir.argtypes = _libc.telldir.argtypes = _libc.closedir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Listing:
    """An open directory of the C library, with its cookies."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def next(self) -> str | None:
        """Return the next name that stays; None at the end."""
        while entry := _libc.readdir(self._stream):
            name = os.fsdecode(ctypes.string_at(entry + _D_NAME_AT))
            if name.startswith("stays"):
                return name
        return None

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, cookie: int) -> None:
        _libc.seekdir(self._stream, cookie)

    def close(self) -> None:
        _libc.closedir(self._stream)


def populate(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    for name in STAYS:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


@contextmanager
def coming_and_going(path: Path, prefix: str) -> Iterator[Callable[[], int]]:
    """Make and remove files while the body runs, each name once; yields a count of those made."""
    stop = threading.Event()
    made = 0

    def run() -> None:
        nonlocal made
        while not stop.is_set():
            (path / f"{prefix}-{made}").touch()
            made += 1
            if made > THERE:
                (path / f"{prefix}-{made - THERE - 1}").unlink()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: made
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Many:
    """A share of many files.

    Attributes:
        shared: Their directory on the host.
        mounted: The same, through the device.
        pid: Process of the device host.
    """

    shared: Path
    mounted: Path
    pid: int


@pytest.fixture(scope="module")
def trees() -> Iterator[dict[str, Path]]:
    with ExitStack() as stack:
        in_memory, on_disk = (stack.enter_context(directory(under)) for under in ("/tmp", ON_DISK))
        stack.enter_context(tmpfs(in_memory))
        for path in (in_memory, on_disk):
            populate(path)
        yield {"tmpfs": in_memory, "disk": on_disk}


@pytest.fixture(
    scope="module",
    params=[(kind, native) for kind in ("tmpfs", "disk") for native in ("1", "0")],
    ids=lambda param: f"{param[0]}-{'native' if param[1] == '1' else 'python'}",
)
def many(trees: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Many]:
    """A share of a device host that may have few files open, natively and not."""
    kind, native = request.param
    prefix = (
        *("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"),
        *("setpriv", "--bounding-set=-sys_resource"),  # which would let it raise the limit
        *("env", f"{fastpath.SWITCH}={native}"),
    )
    with directory("/tmp") as place, MountedShares(place, prefix) as shares:
        mounted = shares.mount("many", trees[kind], "queues=2")
        with shares.deadline(DEADLINE_S):
            yield Many(trees[kind], mounted, shares.device_host.pid)


def test_what_stays_is_listed_once_while_others_come_and_go(many: Many) -> None:
    with ExitStack() as stack:
        made = [
            stack.enter_context(coming_and_going(many.mounted, "guest")),
            stack.enter_context(coming_and_going(many.shared, "host")),
        ]
        before = [count() for count in made]
        listed = Counter(os.listdir(many.mounted))
        assert all(count() > some for count, some in zip(made, before, strict=True))
        assert [name for name, times in listed.items() if times > 1] == []
        assert [name for name in STAYS if name not in listed] == []

        listing = stack.enter_context(closing(Listing(many.mounted)))
        order, cookies = [], []
        while True:
            cookies.append(listing.tell())
            name = listing.next()
            if name is None:
                break
            order.append(name)
        assert sorted(order) == STAYS
        for number in reversed(range(0, FILES, MARKED)):
            listing.seek(cookies[number])
            assert listing.next() == order[number]


def test_more_files_are_known_than_may_be_open(many: Many) -> None:
    inodes = {entry.name: entry.inode() for entry in os.scandir(many.shared)}
    # The test asks for the status of each entry, so the kernel uses READDIRPLUS, which looks up.
    with os.scandir(many.mounted) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False).st_ino for entry in entries}
    assert found == inodes
    assert resource.prlimit(many.pid, resource.RLIMIT_NOFILE) == (DESCRIPTORS, DESCRIPTORS)
    assert len(list(Path(f"/proc/{many.pid}/fd").iterdir())) < DESCRIPTORS
    # A node that became idle is still the same file, even under another name.
    for number, name in enumerate(STAYS[::CHANGED]):
        moved = many.shared / f"moved-{number}"
        os.rename(many.shared / name, moved)
        with open(many.mounted / moved.name, "wb") as file:
            os.fchmod(file.fileno(), 0o600 | number & 0o77)
        status = os.lstat(moved)
        assert (stat.S_IMODE(status.st_mode), status.st_ino) == (
            0o600 | number & 0o77,
            inodes[name],
        )
        os.rename(moved, many.shared / name)

"""Random calls on one file, whose contents are predicted and checked.

Must not know the other processes, or where the file is.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
import zlib
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 1 << 17
"""Most bytes of one call."""
_SHOWN_CALLS: Final = 40
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 3
_ZERO_RANGE: Final = 16


class File:
    """One file and its predicted contents."""

    def __init__(self, seed: int, path: str) -> None:
        self._random = random.Random(seed)
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._held = bytearray()
        self._calls: list[str] = []

    def run(self, calls: int) -> None:
        actions: list[Callable[[int, int], None]] = [
            *(self.write, self.write, self.append, self.read, self.read, self.store, self.load),
            *(self.truncate, self.allocate, self.copy, self.sync, self.reopen),
        ]
        for _ in range(calls):
            action = self._random.choice(actions)
            at, count = self._range()
            self._calls.append(f"{action.__name__} {at} {count}")
            try:
                action(at, count)
                size = os.fstat(self._fd).st_size
                assert size == len(self._held), f"size {size}, not {len(self._held)}"
            except Exception as error:
                last = "\n".join(self._calls[-_SHOWN_CALLS:])
                sys.exit(f"{error!r} by the last of {len(self._calls)} calls:\n{last}")
        os.close(self._fd)
        print(zlib.crc32(self._held))

    def _range(self) -> tuple[int, int]:
        at, count = self._random.randrange(_FILE_BYTES), self._random.randrange(1, _MOST_BYTES)
        if self._random.random() < 0.3:  # whole pages
            at, count = at & -4096, (count & -4096) or 4096
        return at, min(count, _FILE_BYTES - at)

    def _put(self, at: int, data: bytes) -> None:
        if len(self._held) < at + len(data):
            self._held.extend(bytes(at + len(data) - len(self._held)))
        self._held[at : at + len(data)] = data

    def _check(self, at: int, found: bytes, count: int) -> None:
        wanted = self._held[at : at + count]
        assert len(found) == len(wanted), f"{len(found)} bytes from {at} on, not {len(wanted)}"
        if found != wanted:
            first = next(
                n for n, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1]
            )
            raise AssertionError(f"byte {at + first} is {found[first]}, not {wanted[first]}")

    def write(self, at: int, count: int) -> None:
        data = self._random.randbytes(count)
        assert os.pwrite(self._fd, data, at) == count
        self._put(at, data)

    def append(self, _: int, count: int) -> None:
        count = min(count, _FILE_BYTES - len(self._held))
        data = self._random.randbytes(count)
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        assert os.write(fd, data) == count
        os.close(fd)
        self._held.extend(data)

    def read(self, at: int, count: int) -> None:
        self._check(at, os.pread(self._fd, count, at), count)

    def store(self, at: int, count: int) -> None:
        count = min(count, len(self._held) - at)
        if count > 0:
            data = self._random.randbytes(count)
            with mmap.mmap(self._fd, len(self._held)) as mapped:
                mapped[at : at + count] = data
                if self._random.random() < 0.5:
                    mapped.flush()
            self._put(at, data)

    def load(self, at: int, count: int) -> None:
        if at < len(self._held):
            with mmap.mmap(self._fd, len(self._held), prot=mmap.PROT_READ) as mapped:
                self._check(at, mapped[at : at + count], count)

    def truncate(self, at: int, _: int) -> None:
        os.ftruncate(self._fd, at)
        self._held[at:] = bytes(max(at - len(self._held), 0))

    def allocate(self, at: int, count: int) -> None:
        mode = self._random.choice((0, _KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE))
        try:
            syscalls.fallocate(self._fd, mode, at, count)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # tmpfs zeroes no range
                return
            raise
        if mode in (0, _ZERO_RANGE):
            self._held.extend(bytes(max(at + count - len(self._held), 0)))
        if mode in (_PUNCH_HOLE, _ZERO_RANGE):
            self._held[at : at + count] = bytes(len(self._held[at : at + count]))

    def copy(self, at: int, count: int) -> None:
        to, _ = self._range()
        count = min(count, _FILE_BYTES - to, max(len(self._held) - at, 0))
        if count and abs(to - at) >= count:
            done = 0
            while done < count:
                part = os.copy_file_range(self._fd, self._fd, count - done, at + done, to + done)
                assert part, "nothing was copied"
                done += part
            self._put(to, bytes(self._held[at : at + count]))

    def sync(self, at: int, count: int) -> None:
        """Write back, and forget what is cached."""
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, at, count, os.POSIX_FADV_DONTNEED)

    def reopen(self, *_: int) -> None:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)

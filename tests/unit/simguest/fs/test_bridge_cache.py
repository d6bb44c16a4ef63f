"""What the kernel's FUSE client caches of a share, seen by the requests that it sends."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.simguest.fs.mount import is_mounted
from services.wire.fuse import Opcode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.simguest.fs.watched_device import Operations
    from tests.unit.simguest.rig import Rig

pytestmark = pytest.mark.fuse

CONTENT = bytes(range(256)) * 1024
DEADLINE_S = 20

_MAP = """
import mmap, sys

with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
    assert mapped[:256] == bytes(range(256))
    mapped[:4] = b"text"
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Share:
    def __init__(self, rig: Rig, host: Path, guest: Path) -> None:
        self.rig, self.host, self.guest = rig, host, guest

    def mount(self, options: str) -> None:
        self.rig.share("data", self.host, options)
        self.rig.workload.mount("data", self.guest)

    @property
    def operations(self) -> Operations:
        return self.rig.operations["data"]

    def read(self, name: str) -> int:
        """Read a file, and return how many bytes the device was asked for."""
        before = self.operations.read_bytes
        assert (self.guest / name).read_bytes() == (self.host / name).read_bytes()
        return self.operations.read_bytes - before


@pytest.fixture
def share(rig: Rig, shared: Path, run_dir: Path) -> Iterator[Share]:
    place = run_dir / "mount point"
    place.mkdir()
    (shared / "file").write_bytes(CONTENT)
    yield Share(rig, shared, place)
    if is_mounted(place):
        rig.workload.unmount("data")


def test_none_keeps_nothing(share: Share) -> None:
    share.mount("cache=none")
    for _ in range(3):
        assert share.read("file") >= len(CONTENT)
    for size in (10, 20, 30):
        (share.host / "file").write_bytes(bytes(size))
        assert (share.guest / "file").stat().st_size == size
    (share.host / "file").rename(share.host / "other")
    assert not (share.guest / "file").exists()
    assert names(share.guest) == ["other"]


def test_none_can_be_mapped_into_memory(share: Share) -> None:
    share.mount("cache=none")
    # In a process of its own: a page fault keeps the interpreter lock, which the device needs.
    subprocess.run(
        [sys.executable, "-c", _MAP, share.guest / "file"], check=True, timeout=DEADLINE_S
    )
    assert (share.host / "file").read_bytes()[:4] == b"text"


def test_auto_keeps_data_until_they_change(share: Share) -> None:
    share.mount("cache=auto")
    with (share.guest / "file").open("rb") as file:
        file.read()
        before = share.operations.count(Opcode.READ)
        file.seek(0)
        assert file.read() == CONTENT
        assert share.operations.count(Opcode.READ) == before
    assert share.read("file") >= len(CONTENT), "opening the file again must read it again"


def test_always_keeps_everything(share: Share) -> None:
    (share.host / "directory").mkdir()
    (share.host / "directory" / "entry").touch()
    share.mount("cache=always")
    assert share.read("file") >= len(CONTENT)
    assert share.read("file") == 0
    listed = names(share.guest / "directory")
    # The first listing has changed the access time, so the C library asks for it once more.
    assert names(share.guest / "directory") == listed
    (share.guest / "file").stat()
    before = share.operations.awaited()
    (share.guest / "file").stat()
    assert share.operations.awaited() == before
    (share.host / "directory" / "unnoticed").touch()
    assert names(share.guest / "directory") == listed
    (share.host / "file").write_bytes(b"unnoticed")
    assert (share.guest / "file").stat().st_size == len(CONTENT)


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_writes_that_are_kept_back_arrive(share: Share, cache: str) -> None:
    share.mount(f"cache={cache};writeback")
    # Write-only, and not at a page's edge: the kernel reads the rest of the page first.
    fd = os.open(share.guest / "file", os.O_WRONLY)
    os.pwrite(fd, b"in the middle", 5000)
    assert share.operations.count(Opcode.WRITE) == 0, "the write must be kept back"
    os.fsync(fd)
    assert share.operations.count(Opcode.WRITE) == 1
    expected = CONTENT[:5000] + b"in the middle" + CONTENT[5013:]
    assert (share.host / "file").read_bytes() == expected
    os.close(fd)

    log = share.guest / "log"
    first = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in range(1000):
        os.write((first, second)[number % 2], b"line %03d\n" % number)
    assert log.stat().st_size == 9000
    os.close(first)
    os.close(second)
    lines = [b"line %03d\n" % number for number in range(1000)]
    assert (share.host / "log").read_bytes() == b"".join(lines)
    stamp = 1_000_000_000
    os.utime(log, (stamp, stamp))
    assert (share.host / "log").stat().st_mtime == stamp

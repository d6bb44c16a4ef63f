"""Shares as mount points on tmpfs and on a disk, and who works on them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.actor import Actor
from tests.conformance.calls import NAMES
from tests.support.mounted_shares import MountedShares

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_SYSTEMS = ("tmpfs", "disk")
ON_DISK = Path("/var/tmp")
TMPFS_BYTES = 2 << 30
TEST_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test works.

    Attributes:
        kind: Which file system.
        shared: A directory of the host that is shared.
        mounted: The same, through the device.
        plain: A directory of the same file system that is not shared.
    """

    kind: str
    shared: Path
    mounted: Path
    plain: Path


@pytest.fixture(scope="session")
def shares() -> Iterator[MountedShares]:
    """The processes; the mount points lie where anybody can reach them."""
    with _directory("/tmp") as run_dir, MountedShares(run_dir) as started:
        yield started


@pytest.fixture(scope="session")
def places(shares: MountedShares) -> Iterator[dict[str, Place]]:
    """One share per file system."""
    with ExitStack() as stack:
        tmpfs = stack.enter_context(_directory("/tmp"))
        stack.enter_context(_tmpfs(tmpfs))
        disk = stack.enter_context(_directory(ON_DISK))
        made = {}
        for kind, root in zip(FILE_SYSTEMS, (tmpfs, disk), strict=True):
            shared, plain = root / "shared", root / "plain"
            for directory in (shared, plain):
                directory.mkdir()
                directory.chmod(0o755)
            mounted = shares.mount(kind, shared, "queues=2")
            made[kind] = Place(kind, shared, mounted, plain)
        yield made


@pytest.fixture(params=FILE_SYSTEMS)
def place(
    places: dict[str, Place], shares: MountedShares, request: pytest.FixtureRequest
) -> Iterator[Place]:
    """Each file system in turn; a device that hangs fails the test in the end."""
    with shares.deadline(TEST_DEADLINE_S):
        yield places[request.param]


@pytest.fixture(scope="session")
def actors() -> Iterator[dict[str, Actor]]:
    """Root and two ordinary users."""
    made = {name: Actor(NAMES[name]) for name in ("root", "alice", "bob")}
    yield made
    for actor in made.values():
        actor.close()


@contextmanager
def _directory(under: str | Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ph-", dir=under))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def _tmpfs(directory: Path) -> Iterator[None]:
    options = f"size={TMPFS_BYTES},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    yield
    subprocess.run(["umount", "-l", directory], check=True)

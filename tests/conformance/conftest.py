"""Shares as mount points on tmpfs and on a disk, natively and not, and the users on them."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from tests.conformance.actor import Actor
from tests.conformance.calls import NAMES
from tests.support import directories
from tests.support.mounted_shares import MountedShares

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ("tmpfs", "disk", "disk without the native fast path")
ON_DISK = Path("/var/tmp")
TMPFS_BYTES = 2 << 30
ALL = "suid;dev;xattr=all"
"""Options with which a guest may do all that the device host may do."""
TEST_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """The directories that a test works in.

    Attributes:
        kind: One of PLACES.
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
    """The processes; every user can reach the mount points."""
    with directory("/tmp") as place, MountedShares(place) as started:
        yield started


@pytest.fixture(scope="session")
def plain_shares() -> Iterator[MountedShares]:
    """The same, with a device host that does not use the native fast path."""
    prefix = ("env", f"{fastpath.SWITCH}=0")
    with directory("/tmp") as place, MountedShares(place, prefix) as started:
        yield started


@pytest.fixture(scope="session")
def places(shares: MountedShares, plain_shares: MountedShares) -> Iterator[dict[str, Place]]:
    """One share each."""
    with ExitStack() as stack:
        in_memory = stack.enter_context(directory("/tmp"))
        stack.enter_context(tmpfs(in_memory))
        disks = [stack.enter_context(directory(ON_DISK)) for _ in range(2)]
        made = {}
        for kind, root in zip(PLACES, (in_memory, *disks), strict=True):
            served_by = shares if root is not disks[1] else plain_shares
            shared, plain = root / "shared", root / "plain"
            for path in (shared, plain):
                path.mkdir()
                path.chmod(0o755)
            mounted = served_by.mount(root.name, shared, f"queues=2;{ALL}")
            made[kind] = Place(kind, shared, mounted, plain)
        yield made


@pytest.fixture(params=PLACES)
def place(
    places: dict[str, Place],
    shares: MountedShares,
    plain_shares: MountedShares,
    request: pytest.FixtureRequest,
) -> Iterator[Place]:
    """Each in turn; a device that hangs fails the test after a while."""
    with shares.deadline(TEST_DEADLINE_S), plain_shares.deadline(TEST_DEADLINE_S):
        yield places[request.param]


@pytest.fixture(scope="session")
def actors() -> Iterator[dict[str, Actor]]:
    """Root and two ordinary users."""
    made = {name: Actor(NAMES[name]) for name in ("root", "alice", "bob")}
    yield made
    for actor in made.values():
        actor.close()


@contextmanager
def directory(under: str | Path) -> Iterator[Path]:
    """A directory that every user may enter; it is removed afterwards."""
    with directories.directory(under) as path:
        path.chmod(0o755)
        yield path


@contextmanager
def tmpfs(directory: Path) -> Iterator[None]:
    """A tmpfs that is mounted there."""
    options = f"size={TMPFS_BYTES},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    yield
    subprocess.run(["umount", "-l", directory], check=True)

"""An aggregate of shares, and a guest that has mounted it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.aggregate.shares import Aggregate
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.handshake.options import FsOptions
from tests.unit.devicehost.devices.fs.conftest import VM_ID
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from pathlib import Path


LIMITS = Limits(nodes=100, descriptors=100, handles=20)


ROOM_S = 10.0
"""Longest wait for a change that no event reports."""


@dataclass
class Rig:
    """An aggregate, a guest that has mounted it, and directories to share."""

    aggregate: Aggregate
    session: FuseSession
    library: ctypes.CDLL | None
    folder: Path

    def directory(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def add(self, name: str, directory: Path | None = None, **options: object) -> Path:
        path = directory or self.directory(name)
        root = Descriptor(os.open(path, os.O_PATH | os.O_DIRECTORY))
        parsed = FsOptions(name=name, vm_id=VM_ID, **options)  # type: ignore[arg-type]
        self.aggregate.add(name, Share(root, parsed, LIMITS, self.library, self.aggregate.bounds))
        return path

    def guest(self) -> FuseGuest:
        return NativeGuest(self.session) if self.library else FuseGuest(self.session)


@pytest.fixture
def rig(tmp_path: Path, library: ctypes.CDLL | None) -> Rig:
    aggregate = Aggregate(FsOptions(name="shares", vm_id=VM_ID, queues=4), LIMITS, library)
    rig = Rig(aggregate, FuseSession(aggregate, MAX_REQUEST_BYTES), library, tmp_path)
    rig.guest().init()
    return rig


@pytest.fixture
def guest(rig: Rig) -> FuseGuest:
    return rig.guest()


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(FuseError) as failure:
        call()
    assert failure.value.number == number, failure.value


def awaited(condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true; return whether it became true in time."""
    deadline = time.monotonic() + ROOM_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()

"""A share on a real directory, and a guest that has mounted it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.handshake.options import FsOptions
from services.handshake.xattr_map import XATTR_WORDS
from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator
    from pathlib import Path

VM_ID = "6f1d7c0e-9d7e-4b8e-8f0a-3a9a5f0d1c2b"


_OPEN: dict[str, object] = {"suid": True, "dev": True, "xattr": XATTR_WORDS["all"]}
"""A share that lets its guest do all that the device host may do."""
_AMPLE = Limits(nodes=1000, descriptors=1000, handles=100)


class MakeGuest(Protocol):
    def __call__(
        self,
        *,
        limits: Limits = ...,
        max_request_bytes: int = ...,
        mounted: bool = ...,
        **options: object,
    ) -> FuseGuest:
        """Make a guest of a share with these options."""


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """A device serves on threads with umask 0; here the test's own thread serves."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture(params=["python", "native"])
def library(request: pytest.FixtureRequest) -> ctypes.CDLL | None:
    """Every test of a share runs without the native fast path and with it."""
    if request.param == "python":
        return None
    if fastpath.library is None:
        pytest.skip("the native fast path was not built: no C compiler (cc)")
    return fastpath.library


@pytest.fixture
def make_guest(shared: Path, library: ctypes.CDLL | None) -> MakeGuest:
    def make(
        *,
        limits: Limits = _AMPLE,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        mounted: bool = True,
        **options: object,
    ) -> FuseGuest:
        root = Descriptor(os.open(shared, os.O_PATH | os.O_DIRECTORY))
        parsed = FsOptions(name="share", vm_id=VM_ID, **{**_OPEN, **options})  # type: ignore[arg-type]
        session = FuseSession(Share(root, parsed, limits, library), max_request_bytes)
        guest = NativeGuest(session) if library else FuseGuest(session)
        if mounted:
            guest.init()
        return guest

    return make


@pytest.fixture
def guest(make_guest: MakeGuest) -> FuseGuest:
    return make_guest()

"""A share of a FUSE file system, whose file handles lead to nothing after a while."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.handshake.options import FsOptions
from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest
from tests.unit.devicehost.devices.fs.native_guest import NativeGuest

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator

    from tests.unit.simguest.rig import Rig

pytestmark = [pytest.mark.fuse, pytest.mark.root]

FEW = 4
FILES = 20
VM_ID = "6f1d7c0e-9d7e-4b8e-8f0a-3a9a5f0d1c2b"


@pytest.fixture
def mounted(rig: Rig, shared: Path, run_dir: Path) -> Iterator[Path]:
    """A mount point of the user-space guest, with some files."""
    place = run_dir / "mount point"
    place.mkdir()
    for number in range(FILES):
        (shared / f"{number}").write_text(f"file {number}")
    rig.share("data", shared)
    rig.workload.mount("data", place)
    yield place
    rig.workload.unmount("data")


def drop_caches() -> None:
    """Have the kernel forget the files that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


@pytest.mark.parametrize("library", [None, fastpath.library], ids=["python", "native"])
def test_files_are_found_by_name_after_their_handles_led_to_nothing(
    mounted: Path, library: ctypes.CDLL | None
) -> None:
    root = Descriptor(os.open(mounted, os.O_PATH | os.O_DIRECTORY))
    share = Share(root, FsOptions(name="share", vm_id=VM_ID), Limits(100, FEW, 10), library)
    session = FuseSession(share, MAX_REQUEST_BYTES)
    guest = NativeGuest(session) if library else FuseGuest(session)
    guest.init()
    nodes = [guest.lookup(b"%d" % number).nodeid for number in range(FILES)]
    unused = Descriptor(os.open(mounted / "0", os.O_PATH))
    handle = syscalls.name_to_handle(unused.fd)
    del unused
    drop_caches()
    anchor = Descriptor(os.open(mounted, os.O_RDONLY))
    with pytest.raises(OSError, match="Stale file handle"):
        syscalls.open_by_handle(anchor.fd, handle, os.O_PATH)
    for number, node in enumerate(nodes):
        opened = guest.open(node)
        assert guest.read(opened, 100) == b"file %d" % number
        guest.release(opened)
    drop_caches()
    assert [guest.lookup(b"%d" % number).nodeid for number in range(FILES)] == nodes
    del guest, session, share, root, anchor

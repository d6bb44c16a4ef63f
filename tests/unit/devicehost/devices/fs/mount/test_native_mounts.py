"""The mounts of a device as a native loop finds them, and what each loop has of its own."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.mount.native_mount import NativeMount
from services.devicehost.devices.fs.mount.native_mounts import NativeMounts
from services.devicehost.devices.fs.mount.native_tables import _Pin
from services.devicehost.fastpath import Outcome
from services.devicehost.virtio.native_queue import NativeQueue
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.ring_guest import RingGuest

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest


@pytest.mark.parametrize("library", ["native"], indirect=True)
def test_a_loop_has_room_of_its_own_for_data_and_listings(guest: FuseGuest, shared: Path) -> None:
    (shared / "file").write_bytes(b"text")
    mounts = guest.session.native_mounts
    assert mounts is not None
    file, directory = guest.open(guest.lookup(b"file").nodeid), guest.opendir()
    read = fuse.READ_IN.pack(file, 0, 4, 0, 0, 0)
    listing = fuse.READ_IN.pack(directory, 0, 1000, 0, 0, 0)
    woken = os.eventfd(1)
    with RingGuest(natively=True) as driver, mounts.worker() as loop:
        assert isinstance(driver.queue, NativeQueue)
        driver.offer(driver.request(Opcode.READ, 1, read), 16 + 4)
        driver.offer(driver.request(Opcode.READDIR, 1, listing), 1016)
        assert driver.queue.lend(loop, woken) == Outcome.WOKEN
        lengths = [written for _, written in driver.ring.completions()]
    os.close(woken)
    assert lengths == [16 + 4, 16 + 32 + 32 + 32], "., .. and file"


class NoMemory:
    """A library that gets memory for these functions only, and counts what it frees."""

    def __init__(self, *available: str) -> None:
        self._available = available
        self.freed: list[str] = []

    def ph_mounts_new(self) -> int | None:
        return 1 if "ph_mounts_new" in self._available else None

    def ph_mounts_put(self, *_: object) -> bool:
        return False

    def ph_mounts_free(self, _: int) -> None:
        self.freed.append("mounts")

    def ph_worker_new(self, _: bool) -> None:
        return None

    def ph_worker_delete(self, _: int) -> None:
        self.freed.append("worker")


def test_without_memory_nothing_is_mounted_or_served() -> None:
    library = NoMemory()
    with pytest.raises(OSError) as error:
        NativeMounts(cast("ctypes.CDLL", library))
    assert error.value.errno == errno.ENOMEM
    library = NoMemory("ph_mounts_new")
    mounts = NativeMounts(cast("ctypes.CDLL", library))
    with pytest.raises(OSError) as error:
        mounts.put(0, None)
    assert error.value.errno == errno.ENOMEM
    with pytest.raises(OSError) as error, mounts.worker():
        pass
    assert error.value.errno == errno.ENOMEM
    del mounts, error
    assert library.freed == ["mounts"]


class NoMount:
    """A library that makes no mount of a directory."""

    def ph_mount_new(self, setup: Any) -> None:
        os.close(setup._obj.root_fd)


def test_a_mount_that_the_library_cannot_make_is_an_error(shared: Path) -> None:
    root = Descriptor(os.open(shared, os.O_PATH))
    limits = Limits(nodes=1, descriptors=1, handles=1)
    with pytest.raises(OSError) as error:
        NativeMount(
            cast("ctypes.CDLL", NoMount()),
            root,
            fastpath.PhRules(),
            limits,
            root_id=1,
            may_switch=False,
        )
    assert error.value.errno == errno.EIO
    assert len(open_descriptors(shared.parent)) == 1, "the root's"


class Released(NoMount):
    """A library that counts how often its mount is released."""

    def __init__(self) -> None:
        self.released: list[int] = []

    def ph_mount_new(self, setup: Any) -> Any:
        super().ph_mount_new(setup)
        return 4711

    def ph_mount_release(self, pointer: int) -> None:
        self.released.append(pointer)


def test_a_mount_that_is_finalized_before_its_nodes_is_released_once(shared: Path) -> None:
    """As in a cycle that is collected; what it has pinned goes with it."""
    library, unpinned = Released(), []
    root = Descriptor(os.open(shared, os.O_PATH))
    limits = Limits(nodes=1, descriptors=1, handles=1)
    mount = NativeMount(
        cast("ctypes.CDLL", library),
        root,
        fastpath.PhRules(),
        limits,
        root_id=1,
        may_switch=False,
    )
    pin = _Pin(mount, lambda *which: unpinned.append(which), 7, root.fd)
    mount.__del__()
    del pin, mount
    assert (library.released, unpinned) == ([4711], [])

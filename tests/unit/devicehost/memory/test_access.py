"""What follows from how a device reaches guest memory, kind by kind."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, cast

import pytest

from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices import FsBackend, make_device
from services.devicehost.memory import (
    Access,
    Aperture,
    ApertureMemory,
    TranslationError,
    Whole,
    WholeMemory,
    WindowMemory,
    WindowQuota,
    Windows,
    confined,
)
from services.handshake import events
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.handshake.options import FsOptions
from services.handshake.pool import PAGE_BYTES, Gpa, SwiotlbPool
from services.wire import fuse
from services.wire.fuse import InitOut
from tests.unit.devicehost.devices.fs.test_device import INIT, ScriptedQueue
from tests.unit.devicehost.memory.conftest import MIB
from tests.unit.devicehost.memory.test_aperture import mapped_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from services.devicehost.memory import RegionTable
    from services.devicehost.virtio.queue import Queue
    from tests.support.guest_ring import GuestRam

POOL = SwiotlbPool(Gpa(8 * MIB), 2 * MIB)
NAMES = ("6f1d7c0e-9d7e-4b8e-8f0a-3a9a5f0d1c2b", "dev-1", events.FS, "share")
KINDS = [Aperture(POOL), Windows(WindowQuota()), Whole()]
IDS = ["aperture", "windows", "whole"]


def descriptors(table: RegionTable) -> list[int]:
    return [region.fd for region in table if region.fd is not None]


@pytest.mark.parametrize(
    ("access", "kind", "mapped"),
    [
        (KINDS[0], ApertureMemory, [(POOL.base, POOL.size_bytes)]),
        (KINDS[1], WindowMemory, []),
        (KINDS[2], WholeMemory, [(0, 16 * MIB)]),
    ],
    ids=IDS,
)
def test_attaching_maps_what_the_device_may_reach(
    ram: GuestRam, access: Access, kind: type, mapped: list[tuple[int, int]]
) -> None:
    before = Counter(mapped_bytes())
    table = ram.table()
    memory = access.attach(table, DeviceMeter())
    assert type(memory) is kind
    new = Counter(mapped_bytes()) - before
    assert new == Counter((ram.file_offset + offset, length) for offset, length in mapped)
    memory.release()
    table.close()


def test_an_aperture_reaches_the_pool_only_and_the_others_all_of_memory(ram: GuestRam) -> None:
    for access, may_leave_the_pool in zip(KINDS, (False, True, True), strict=True):
        table, meter = ram.table(), DeviceMeter()
        memory = access.attach(table, meter)
        assert memory.read(POOL.base, 8) == bytes(8)
        if may_leave_the_pool:
            assert memory.read(POOL.end, 8) == bytes(8)
        else:
            with pytest.raises(TranslationError):
                memory.read(POOL.end, 8)
        assert meter.snapshot().translations_refused == (not may_leave_the_pool)
        memory.release()
        table.close()


def test_a_pool_outside_of_guest_memory_cannot_be_attached(ram: GuestRam) -> None:
    table = ram.table()
    with pytest.raises(FailedPreconditionError) as caught:
        Aperture(SwiotlbPool(Gpa(15 * MIB), 2 * MIB)).attach(table, DeviceMeter())
    assert caught.value.reason == "POOL_NOT_IN_GUEST_MEMORY"
    table.close()


@pytest.mark.parametrize("access", KINDS, ids=IDS)
def test_what_is_not_kept_is_closed_once_the_rings_are_placed(
    ram: GuestRam, access: Access
) -> None:
    table = ram.table()
    memory = access.attach(table, DeviceMeter())
    assert len(descriptors(table)) == 1, "a ring may still be placed anywhere"
    assert access.trim(table) == (not access.keeps_descriptors)
    assert access.trim(table) == 0
    assert len(descriptors(table)) == access.keeps_descriptors
    assert table.user_to_gpa(next(iter(table)).user_addr, 8) == 0, "addresses are still known"
    memory.release()
    table.close()


def test_only_an_aperture_gives_its_descriptors_up() -> None:
    assert [access.keeps_descriptors for access in KINDS] == [False, True, True]


def test_an_aperture_and_windows_have_an_event_each_and_all_of_memory_has_none() -> None:
    assert [access.attached_event(*NAMES) for access in KINDS] == [
        events.aperture_created(*NAMES, POOL),
        events.windows_enabled(*NAMES),
        None,
    ]


def test_a_request_never_needs_more_than_its_memory_can_map() -> None:
    aperture, windows, whole = KINDS
    assert aperture.max_request_bytes == 256 << 10
    assert windows.max_request_bytes == whole.max_request_bytes == 1 << 20
    # Scattered pages: a window for each.
    assert windows.max_request_bytes // PAGE_BYTES < WindowQuota().device_limit


@pytest.mark.parametrize("access", KINDS, ids=IDS)
def test_a_virtio_fs_device_negotiates_what_its_memory_allows(
    tmp_path: Path, access: Access
) -> None:
    options = FsOptions(name="share", vm_id=NAMES[0])
    device = make_device(options, FsBackend(str(tmp_path)), access, DeviceMeter())
    queue = ScriptedQueue([INIT])
    worker = threading.Thread(target=device.serve, args=(1, cast("Queue", queue)))
    worker.start()  # a thread of its own: it gets a umask of its own
    worker.join(10)
    out = InitOut(*fuse.INIT_OUT.unpack_from(queue.replies[0], fuse.OUT_HEADER.size))
    assert out.max_write == out.max_pages * PAGE_BYTES == access.max_request_bytes
    device.close()


def test_each_kind_describes_itself_and_the_one_that_is_not_confined_warns() -> None:
    aperture, windows, whole = KINDS
    assert str(aperture) == "only [0x800000, 0xa00000) is mapped"
    assert "384 windows" in str(windows)
    assert str(whole) == "all of it is mapped"
    assert "not confined" in whole.warning
    assert aperture.warning == windows.warning == ""
    assert [access.log_level for access in KINDS] == [logging.INFO, logging.INFO, logging.WARNING]


def test_the_pool_of_a_vm_decides_how_its_devices_are_confined() -> None:
    quota = WindowQuota()
    assert confined(POOL, quota) == Aperture(POOL)
    assert confined(None, quota) == Windows(quota)
    assert [access.pool for access in KINDS] == [POOL, None, None]


def test_rings_may_be_kept_inside_where_there_is_a_pool(ram: GuestRam) -> None:
    confined_more = Aperture(POOL).with_rings("inside")
    assert confined_more == Aperture(POOL, rings_inside=True)
    assert str(confined_more) == "only [0x800000, 0xa00000) is mapped, and no ring outside it"
    assert Aperture(POOL).with_rings("anywhere") == Aperture(POOL)
    assert [access.rings_inside for access in (confined_more, *KINDS)] == [True, *[False] * 3]
    for access in KINDS[1:]:
        assert access.with_rings("anywhere") is access
        with pytest.raises(InvalidArgumentError, match="give it the token of one") as caught:
            access.with_rings("inside")
        assert caught.value.reason == "RINGS_WITHOUT_POOL"


PART = SwiotlbPool(Gpa(POOL.base + MIB), MIB // 2)


@pytest.mark.parametrize("rings", ["anywhere", "inside"])
def test_a_part_of_the_pool_is_all_that_its_device_maps_with_its_rings(
    ram: GuestRam, rings: str
) -> None:
    access = confined(POOL, WindowQuota(), PART).with_rings(rings)
    assert access == Aperture(PART, rings_inside=True)
    assert access.attached_event(*NAMES) == events.aperture_created(*NAMES, PART)
    before = Counter(mapped_bytes())
    table, meter = ram.table(), DeviceMeter()
    memory = access.attach(table, meter)
    assert access.trim(table) == 1
    assert Counter(mapped_bytes()) - before == Counter(
        [(ram.file_offset + PART.base, PART.size_bytes)]
    )
    assert memory.read(PART.base, PART.size_bytes) == bytes(PART.size_bytes)
    for outside in (POOL.base, PART.base - 1, PART.end, POOL.end - 8):
        with pytest.raises(TranslationError):
            memory.read(outside, 8)
        with pytest.raises(InvalidArgumentError) as refused:
            memory.pin(outside, 8)
        assert refused.value.reason == "RING_OUTSIDE_APERTURE"
        assert "or leave the option out" in refused.value.message
    memory.release()
    table.close()


@pytest.mark.parametrize("access", KINDS, ids=IDS)
def test_the_choice_cannot_be_changed(access: Access) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        access.pool = SwiotlbPool(Gpa(0), MIB)  # type: ignore[misc]


@pytest.mark.parametrize("access", KINDS, ids=IDS)
def test_an_address_outside_of_all_memory_is_refused_and_counted(
    ram: GuestRam, access: Access
) -> None:
    table, meter = ram.table(), DeviceMeter()
    memory = access.attach(table, meter)
    with pytest.raises(TranslationError):
        memory.read(1 << 40, 8)
    assert meter.snapshot().translations_refused == 1
    memory.release()
    table.close()

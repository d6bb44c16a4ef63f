"""Pages that are lost while they are mapped end the use of that memory, and not the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import (
    ApertureMemory,
    OwnRisk,
    RegionTable,
    WholeMemory,
    WindowMemory,
    WindowQuota,
)
from services.devicehost.memory import loss as loss_module
from services.devicehost.memory import regions as regions_module
from services.devicehost.memory.loss import Loss
from services.devicehost.memory.mapping import Mapping, guard_against_loss, page_bytes_of
from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import PAGE_BYTES, Gpa, SwiotlbPool
from tests.support.guest_ring import GuestRam
from tests.support.huge_pages import HUGE, huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
POOL = SwiotlbPool(Gpa(2 * MIB), 4 * MIB)

needs_library = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)


def shrinking_ram() -> tuple[GuestRam, RegionTable]:
    """Memory that is accepted in a process of its own only, because it may shrink."""
    ram = GuestRam(8 * MIB, sealed=False)
    table = RegionTable(OwnRisk())
    table.add(ram.region())
    return ram, table


@needs_library
class TestLost:
    def test_all_of_a_mapping_is_zeros_and_its_memory_knows(self) -> None:
        ram, table = shrinking_ram()
        memory = ApertureMemory(table, POOL, DeviceMeter())
        view = memory.view(POOL.base, POOL.size_bytes)
        view[0], view[2 * MIB] = 1, 2
        told = threading.Event()
        memory.loss.report_to(told.set)
        os.ftruncate(ram.fd, POOL.base + MIB)
        assert (view[0], memory.loss.has_happened) == (1, False)
        assert (view[2 * MIB], memory.loss.has_happened) == (0, True)
        assert view[0] == 0, "what is there is not the guest's any more"
        assert told.wait(10)
        view[2 * MIB] = 7
        assert view[2 * MIB] == 7
        memory.release()
        table.close()
        ram.close()

    def test_other_memory_is_not_affected(self, ram: GuestRam) -> None:
        lost, lost_table = shrinking_ram()
        table = ram.table()
        mine = WholeMemory(table, DeviceMeter())
        theirs = WholeMemory(lost_table, DeviceMeter())
        mine.view(0, 1)[0] = 5
        os.ftruncate(lost.fd, 0)
        assert theirs.view(5 * MIB, 1)[0] == 0
        assert (theirs.loss.has_happened, mine.loss.has_happened) == (True, False)
        assert mine.view(0, 1)[0] == 5
        for memory in (mine, theirs):
            memory.release()
        for each in (table, lost_table):
            each.close()
        lost.close()

    def test_windows_and_pinned_rings_are_watched_too(self) -> None:
        ram, table = shrinking_ram()
        for touch in (
            lambda memory: memory.read(MIB, 8),
            lambda memory: bytes(memory.pin(MIB, 8).view),
        ):
            memory = WindowMemory(table, WindowQuota(), DeviceMeter())
            os.ftruncate(ram.fd, 0)
            assert touch(memory) == bytes(8)
            assert memory.loss.has_happened
            memory.release()
            os.ftruncate(ram.fd, 8 * MIB)
        table.close()
        ram.close()

    def test_a_loss_is_remembered_when_the_mapping_is_gone(self) -> None:
        ram, table = shrinking_ram()
        loss = Loss()
        mapping = Mapping(ram.fd, 0, PAGE_BYTES, loss)
        os.ftruncate(ram.fd, 0)
        assert mapping.view[0] == 0
        mapping.close()
        assert loss.has_happened
        late: list[int] = []
        loss.report_to(lambda: late.append(1))
        assert late == [1]
        again = Loss()
        os.ftruncate(ram.fd, PAGE_BYTES)
        other = Mapping(ram.fd, 0, PAGE_BYTES, again)
        assert other.view[0] == 0
        assert not again.has_happened, "its number was that of a lost mapping"
        other.close()
        table.close()
        ram.close()

    def test_who_is_not_interested_any_more_learns_nothing(self) -> None:
        ram, table = shrinking_ram()
        loss = Loss()
        mapping = Mapping(ram.fd, 0, PAGE_BYTES, loss)
        heard: list[str] = []
        here = threading.Event()

        def leaves() -> None:
            heard.append("left")

        loss.report_to(leaves)
        loss.report_to(here.set)
        loss.report_no_more_to(leaves)
        os.ftruncate(ram.fd, 0)
        assert mapping.view[0] == 0
        assert here.wait(10)
        assert heard == []
        mapping.close()
        table.close()
        ram.close()

    def test_too_many_mappings_are_refused(
        self, ram: GuestRam, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Full:
            def ph_lost_watch(self, *_: int) -> int:
                return -1

        assert loss_module.survives_lost_pages()
        monkeypatch.setattr(loss_module, "_installed", Full())
        with pytest.raises(InvalidArgumentError, match="65536 mappings") as caught:
            Mapping(ram.fd, 0, PAGE_BYTES, Loss())
        assert caught.value.reason == "MAPPING_FAILED"


ELSEWHERE = """
import mmap, os, resource, signal, sys
from services.devicehost.memory.loss import survives_lost_pages

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
assert survives_lost_pages()
if sys.argv[1] == "touch":
    fd = os.memfd_create("other")
    os.ftruncate(fd, 4096)
    other = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    other[0]
else:
    os.kill(os.getpid(), signal.SIGBUS)
print("lives on")
"""


@needs_library
@pytest.mark.parametrize("how", ["touch", "kill"])
@pytest.mark.parametrize("options", [[], ["-X", "faulthandler"]], ids=["alone", "faulthandler"])
def test_a_fault_elsewhere_ends_the_process_as_ever(how: str, options: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *options, "-c", ELSEWHERE, how],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGBUS
    assert ended.stdout == ""
    assert ("Fatal Python error: Bus error" in ended.stderr) == bool(options)


class TestHugePages:
    @needs_library
    def test_a_hole_that_cannot_be_filled_is_survived(self) -> None:
        with huge_pages(3) as pages:
            ram = GuestRam(3 * HUGE, huge_pages=True)
            table = ram.table()
            memory = ApertureMemory(table, SwiotlbPool(Gpa(HUGE), 2 * HUGE), DeviceMeter())
            view = memory.view(HUGE, 2 * HUGE)
            view[0], view[HUGE] = 1, 2
            ram.write(0, b"guest")
            pages.punch_hole(ram.fd, 2 * HUGE, left=2)
            assert view[0] == 1
            assert view[HUGE] == 0
            assert memory.loss.has_happened
            memory.release()
            table.close()
            ram.close()

    def test_without_the_native_library_they_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(fastpath, "library", None)
        monkeypatch.setattr(loss_module, "_installed", None)
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, HUGE)
        with pytest.raises(InvalidArgumentError, match="hugetlb=off") as caught:
            guard_against_loss(fd, HUGE)
        assert caught.value.reason == "REGION_HUGE_PAGES"
        assert caught.value.metadata == {"page_bytes": str(HUGE)}
        OwnRisk()(fd, HUGE)
        assert "accepted all the same" in caplog.text
        os.close(fd)

    def test_memory_of_ordinary_pages_is_taken_without_it(
        self, ram: GuestRam, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fastpath, "library", None)
        monkeypatch.setattr(loss_module, "_installed", None)
        assert page_bytes_of(ram.fd) == PAGE_BYTES
        table = ram.table()
        memory = ApertureMemory(table, POOL, DeviceMeter())
        assert not memory.loss.has_happened
        memory.release()
        table.close()

    @pytest.mark.parametrize(("offset", "length"), [(0, PAGE_BYTES), (PAGE_BYTES, HUGE)])
    def test_a_part_of_one_is_not_mapped(self, offset: int, length: int) -> None:
        """The kernel would map all of it, which is more than was asked for, and never unmap it."""
        fd = os.memfd_create("guest", os.MFD_HUGETLB)
        os.ftruncate(fd, 2 * HUGE)
        assert page_bytes_of(fd) == HUGE
        with pytest.raises(InvalidArgumentError, match="whole huge pages of 0x200000") as caught:
            Mapping(fd, offset, length, Loss(), page_bytes_of(fd))
        assert caught.value.reason == "MAPPING_FAILED"
        os.close(fd)


def windows_of(table: RegionTable) -> WindowMemory:
    return WindowMemory(table, WindowQuota(), DeviceMeter())


@pytest.mark.parametrize(
    "map_part",
    [
        lambda table: WholeMemory(table, DeviceMeter()),
        lambda table: windows_of(table).pin(PAGE_BYTES, 16),
        lambda table: windows_of(table).map_pages((PAGE_BYTES, PAGE_BYTES)),
    ],
    ids=["whole", "ring", "window"],
)
def test_no_kind_of_memory_maps_a_part_of_a_huge_page(
    monkeypatch: pytest.MonkeyPatch, map_part: Callable[[RegionTable], object]
) -> None:
    """The table says what pages its files have; that they are ordinary ones here does not count."""
    monkeypatch.setattr(regions_module, "page_bytes_of", lambda _fd: HUGE)
    ram = GuestRam(3 * MIB)
    table = ram.table()
    with pytest.raises(InvalidArgumentError, match="whole huge pages of 0x200000") as caught:
        map_part(table)
    assert caught.value.reason == "MAPPING_FAILED"
    table.close()
    ram.close()


class Reported(Loss):
    """A loss that knows whether the thread which waits for losses has reported to it."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Semaphore(0)

    def _report(self) -> None:
        self.told.release()


def test_every_loss_is_reported_to_all_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = [Reported(), Reported()]
    # The first one watches two mappings, and is told once each time.
    monkeypatch.setattr(
        loss_module, "_watched", {-1: watching[0], -2: watching[0], -3: watching[1]}
    )
    event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    threading.Thread(target=loss_module._report_losses, args=(event_fd,), daemon=True).start()
    for _ in range(3):
        os.eventfd_write(event_fd, 1)
        for each in watching:
            assert each.told.acquire(timeout=10)
            assert not each.told.acquire(blocking=False)

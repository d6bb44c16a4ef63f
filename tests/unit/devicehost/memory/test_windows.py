from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.devicehost.accounting import DeviceMeter, Usage
from services.devicehost.memory import TranslationError, WindowMemory, WindowQuota
from services.devicehost.memory.windows import page_range
from services.handshake.errors import DeadlineExceededError, ResourceExhaustedError
from services.handshake.exhaustion import Exhaustion
from tests.support.guest_ring import GuestRam
from tests.unit.devicehost.memory.test_aperture import mapped_bytes

PAGE = 4096


class Device:
    """A device without a token."""

    def __init__(self, ram: GuestRam, quota: WindowQuota) -> None:
        self.meter = DeviceMeter()
        self.table = ram.table()
        self.memory = WindowMemory(self.table, quota, self.meter)

    def close(self) -> None:
        self.memory.release()
        self.table.close()


def test_a_window_is_the_pages_of_its_buffer(ram: GuestRam) -> None:
    device = Device(ram, WindowQuota())
    before = mapped_bytes()
    with device.memory.lease((PAGE - 10,), (20,)) as lease:
        new = [span for span in mapped_bytes() if span not in before]
        assert new == [(ram.file_offset, 2 * PAGE)]
        lease.view(PAGE - 10, 20)[:] = b"x" * 20
    assert ram.read(PAGE - 10, 20) == b"x" * 20
    device.close()
    assert mapped_bytes() == before


def test_windows_are_kept_and_used_again(ram: GuestRam) -> None:
    quota = WindowQuota()
    device = Device(ram, quota)
    for _ in range(5):
        with device.memory.lease((0, 3 * PAGE), (100, 100)):
            assert quota.used == 2
    assert device.meter.snapshot().windows_mapped == 2
    assert device.meter.snapshot().windows_evicted == 0
    device.close()
    assert quota.used == 0


def test_the_least_recently_used_window_makes_room_whichever_device_it_is_of(
    ram: GuestRam,
) -> None:
    quota = WindowQuota(limit=2)
    first, second = Device(ram, quota), Device(ram, quota)
    first.memory.read(0, 8)
    first.memory.read(PAGE, 8)
    first.memory.read(0, 8)
    second.memory.read(5 * PAGE, 8)
    assert quota.used == 2
    assert first.meter.snapshot().windows_evicted == 1
    first.memory.read(0, 8)
    assert first.meter.snapshot().windows_mapped == 2, "the one used last was kept"
    first.close()
    second.close()
    assert quota.used == 0


def test_a_request_waits_for_a_window_and_gets_it(ram: GuestRam) -> None:
    quota = WindowQuota(limit=1, deadline_s=30)
    holder, waiter = Device(ram, quota), Device(ram, quota)
    lease = holder.memory.lease((0,), (8,))
    ram.write(7 * PAGE, b"waited for")
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(waiter.memory.read, 7 * PAGE, 10)
        while waiter.meter.snapshot().windows_waited == 0:
            assert not pending.done()
        lease.close()
        assert pending.result(30) == b"waited for"
    assert waiter.meter.snapshot().windows_waited == 1
    holder.close()
    waiter.close()


def test_waiting_ends_at_the_deadline_and_keeps_nothing(ram: GuestRam) -> None:
    quota = WindowQuota(limit=2, deadline_s=0.05)
    device = Device(ram, quota)
    with device.memory.lease((0,), (8,)):
        with pytest.raises(DeadlineExceededError) as caught:
            device.memory.lease((PAGE, 2 * PAGE), (8, 8))
        assert caught.value.reason == "WINDOW_DEADLINE"
        assert "1 of the device's 2 and 1 of the VM's 2" in caught.value.message
    with device.memory.lease((PAGE, 2 * PAGE), (8, 8)):
        assert quota.used == 2
    device.close()


def test_more_windows_than_the_quota_has_are_refused_at_once(ram: GuestRam) -> None:
    device = Device(ram, WindowQuota(limit=2))
    with pytest.raises(ResourceExhaustedError) as caught:
        device.memory.lease((0, PAGE, 2 * PAGE), (8, 8, 8))
    assert caught.value.reason == "WINDOW_QUOTA_TOO_SMALL"
    device.close()


@pytest.mark.parametrize("gpa", [16 << 20, (16 << 20) - 4, 2**64 - 4, 2**64 - 1])
def test_addresses_outside_guest_memory_are_refused_before_any_wait(
    ram: GuestRam, gpa: int
) -> None:
    quota = WindowQuota(limit=1, deadline_s=30)
    device = Device(ram, quota)
    with device.memory.lease((0,), (8,)), pytest.raises(TranslationError):
        device.memory.lease((gpa,), (8,))
    assert device.meter.snapshot().translations_refused == 1
    device.close()


def test_many_threads_share_a_small_quota_and_every_request_is_served(ram: GuestRam) -> None:
    quota = WindowQuota(limit=3, deadline_s=60)
    devices = [Device(ram, quota) for _ in range(4)]
    peak = 0
    lock = threading.Lock()

    def work(worker: int) -> int:
        nonlocal peak
        device, done = devices[worker % 4], 0
        for turn in range(150):
            buffers = [(worker * 7 + turn + part) % 64 * PAGE for part in range(1 + turn % 3)]
            with device.memory.lease(buffers, [16] * len(buffers)) as lease:
                for gpa in buffers:
                    lease.view(gpa, 16)[0] = turn & 0xFF
                with lock:
                    peak = max(peak, quota.used)
                done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [150] * 8
    assert 1 <= peak <= 3
    for device in devices:
        device.close()
    assert quota.used == 0


def test_page_range_widens_to_whole_pages() -> None:
    assert page_range(0, 1) == (0, PAGE)
    assert page_range(PAGE - 1, 2) == (0, 2 * PAGE)
    assert page_range(PAGE, PAGE) == (PAGE, PAGE)


def test_one_device_leaves_windows_to_its_neighbours(ram: GuestRam) -> None:
    quota = WindowQuota(limit=4, deadline_s=0.05)
    greedy, neighbour = Device(ram, quota), Device(ram, quota)
    assert quota.device_limit == 3
    with greedy.memory.lease((0, PAGE, 2 * PAGE), (8, 8, 8)):
        with pytest.raises(DeadlineExceededError, match="3 of the device's 3 and 3 of the VM's 4"):
            greedy.memory.read(5 * PAGE, 8)
        greedy.memory.read(0, 8)  # one that it has already
        neighbour.memory.read(5 * PAGE, 8)
    greedy.memory.read(5 * PAGE, 8)
    greedy.close()
    neighbour.close()


def test_a_quota_that_is_used_up_is_reported_once_by_each_device_that_needs_more(
    ram: GuestRam,
) -> None:
    quota = WindowQuota(limit=4, deadline_s=0.05)
    first, second = Device(ram, quota), Device(ram, quota)
    reported: list[tuple[str, Exhaustion]] = []
    for name, device in (("first", first), ("second", second)):
        device.meter.bounds.on_exhausted = lambda what, name=name: reported.append((name, what))
    with first.memory.lease((0, PAGE, 2 * PAGE), (8, 8, 8)):
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                first.memory.read(5 * PAGE, 8)
            with pytest.raises(DeadlineExceededError):
                second.memory.lease((5 * PAGE, 6 * PAGE), (8, 8))
    assert reported == [
        ("first", Exhaustion("windows", 3, 3)),
        ("second", Exhaustion("vm_windows", 3, 4)),
    ]
    usage = {each.resource: each for each in second.meter.bounds.usage()}
    assert usage["vm_windows"] == Usage("vm_windows", used=0, total=4, exhaustions=1)
    assert usage["windows"].exhaustions == 0
    assert second.meter.snapshot().exhaustions == 1
    first.close()
    second.close()


def test_memory_that_begins_above_0_is_reached_where_it_is() -> None:
    base = 1 << 32
    ram = GuestRam(16 * PAGE, gpa=base, file_offset=PAGE)
    ram.write(base + 5 * PAGE + 10, b"here")
    device = Device(ram, WindowQuota())
    assert device.memory.read(base + 5 * PAGE + 10, 4) == b"here"
    ring = device.memory.pin(base + 5 * PAGE + 10, 4)
    assert bytes(ring.view) == b"here"
    ring.close()
    device.close()
    ram.close()


def test_what_was_not_announced_is_mapped_when_it_is_touched_and_kept_until_the_end(
    ram: GuestRam,
) -> None:
    quota = WindowQuota()
    device = Device(ram, quota)
    ram.write(PAGE + 3, b"late")
    with device.memory.lease() as lease:
        first, second = lease.views((PAGE + 3, 2 * PAGE), (4, 8))
        assert (bytes(first), bytes(second)) == (b"late", bytes(8))
        lease.view(PAGE + 3, 4)
        assert (quota.in_use, device.memory.in_use) == (2, 2)
    assert (quota.in_use, device.memory.in_use) == (0, 0)
    assert device.meter.snapshot().windows_mapped == 2
    device.close()


def test_a_window_is_in_use_until_the_last_lease_of_it_ends(ram: GuestRam) -> None:
    quota = WindowQuota()
    device = Device(ram, quota)
    first = device.memory.lease((0, PAGE), (8, 8))
    second = device.memory.lease((0,), (8,))
    second.close()
    assert (quota.in_use, device.memory.in_use) == (2, 2)
    third = device.memory.lease((0,), (8,))
    first.close()
    assert (quota.in_use, device.memory.in_use) == (1, 1)
    third.close()
    assert (quota.in_use, device.memory.in_use) == (0, 0)
    device.close()


@pytest.mark.parametrize("closed_first", [True, False])
def test_a_device_that_goes_leaves_nothing_in_use_or_mapped(
    ram: GuestRam, closed_first: bool
) -> None:
    before = mapped_bytes()
    quota = WindowQuota(limit=4)
    gone, stays = Device(ram, quota), Device(ram, quota)
    lease = gone.memory.lease((0,), (8,))
    if closed_first:
        lease.close()
    gone.close()
    lease.close()
    assert mapped_bytes() == before
    assert (quota.used, quota.in_use, gone.memory.in_use) == (0, 0, 0)
    with stays.memory.lease((0,), (8,)):
        assert quota.in_use == 1
    stays.close()


def test_a_lease_that_fails_half_way_keeps_nothing(ram: GuestRam) -> None:
    quota = WindowQuota()
    device = Device(ram, quota)
    device.memory.read(0, 8)
    device.table.close_fds()
    shown = f"guest address 0x{PAGE:x}, length 0x{PAGE:x}, is not inside guest memory"
    with pytest.raises(TranslationError, match=shown):
        device.memory.lease((0, PAGE), (8, 8))
    assert (quota.in_use, device.memory.in_use) == (0, 0)
    device.close()


def test_a_refused_address_is_named(ram: GuestRam) -> None:
    device = Device(ram, WindowQuota())
    with pytest.raises(TranslationError, match="is not inside guest memory"):
        device.memory.lease((16 << 20,), (8,))
    device.close()


def test_every_address_of_a_lease_has_a_length(ram: GuestRam) -> None:
    device = Device(ram, WindowQuota())
    with pytest.raises(ValueError, match="shorter"):
        device.memory.lease((0, PAGE), (8,))
    device.close()


def test_a_request_that_waits_is_counted_once_however_often_it_is_woken(
    ram: GuestRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = WindowQuota(limit=2, deadline_s=30)
    holder, waiter = Device(ram, quota), Device(ram, quota)
    tries = threading.Semaphore(0)
    monkeypatch.setattr(waiter.meter.bounds, "hit", lambda _: tries.release())
    leases = [holder.memory.lease((place * PAGE,), (8,)) for place in range(2)]
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(waiter.memory.lease, (5 * PAGE, 6 * PAGE), (8, 8))
        for lease in leases:
            assert tries.acquire(timeout=30)
            lease.close()
        pending.result(30).close()
    assert waiter.meter.snapshot().windows_waited == 1
    holder.close()
    waiter.close()


def test_a_refusal_for_want_of_windows_has_its_numbers(ram: GuestRam) -> None:
    quota = WindowQuota(limit=4, deadline_s=0.01)
    device = Device(ram, quota)
    places = [place * PAGE for place in range(4)]
    shown = "needs 4 windows at once; a device has 3, and its VM 4"
    with pytest.raises(ResourceExhaustedError, match=shown) as exhausted:
        device.memory.lease(places, [8] * 4)
    assert exhausted.value.metadata == {"needed": "4", "limit": "3"}
    with (
        device.memory.lease(places[:2], [8] * 2),
        pytest.raises(DeadlineExceededError) as late,
    ):
        device.memory.lease(places[2:], [8] * 2)
    assert late.value.metadata == {"needed": "2", "limit": "4"}
    device.close()


def test_evictions_add_up(ram: GuestRam) -> None:
    device = Device(ram, WindowQuota(limit=1))
    for place in range(4):
        device.memory.read(place * PAGE, 8)
    assert device.meter.snapshot().windows_evicted == 3
    device.close()


def test_a_quota_that_is_used_up_is_reported_with_its_lock_free(ram: GuestRam) -> None:
    quota = WindowQuota(limit=2, deadline_s=10)
    greedy, neighbour = Device(ram, quota), Device(ram, quota)
    served = threading.Event()
    lease = greedy.memory.lease((0,), (8,))

    def on_exhausted(_: Exhaustion) -> None:
        """Let a request of a neighbour through, and make room."""

        def serve() -> None:
            neighbour.memory.read(0, 8)
            lease.close()
            served.set()

        threading.Thread(target=serve, daemon=True).start()
        assert served.wait(5), "the quota is locked while others are called"

    greedy.meter.bounds.on_exhausted = on_exhausted
    with greedy.memory.lease((PAGE, 2 * PAGE), (8, 8)):
        assert served.is_set()
    greedy.close()
    neighbour.close()


def test_a_request_that_waits_reports_that_once_while_nothing_changes(
    ram: GuestRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = WindowQuota(limit=2, deadline_s=0.05)
    device = Device(ram, quota)
    hits: list[str] = []
    monkeypatch.setattr(device.meter.bounds, "hit", hits.append)
    with device.memory.lease((0,), (8,)):
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                device.memory.lease((PAGE, 2 * PAGE), (8, 8))
    assert hits == ["windows"] * 2
    assert device.meter.snapshot().windows_waited == 2
    device.close()

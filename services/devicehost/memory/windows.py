"""On-demand windows, for devices without a token, and the quota that the devices of a VM share.

A window is the pages of one guest buffer. It stays mapped after use. When room is needed, the
least recently used window of any device is unmapped. A request waits, with a deadline, while all
windows are in use, or as many as one device may use. Must not know requests or queues.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Self

from services.devicehost.accounting import Bound
from services.devicehost.memory.guest import GpaRange, GuestMemory
from services.devicehost.memory.mapping import Mapping
from services.handshake.errors import DeadlineExceededError, ResourceExhaustedError
from services.handshake.exhaustion import Resource
from services.handshake.pool import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory.regions import RegionTable

WINDOW_LIMIT: Final = 512
"""Windows that the devices of one VM may have mapped together, as on the host that WSL runs on."""

DEVICE_SHARE: Final = (3, 4)
"""Part of them that one device may use at a time, as numerator and denominator. It is more than a
request of 1 MiB in scattered pages needs. It is less than all, so that a guest that uses up one
device's part leaves windows to the others."""

WINDOW_DEADLINE_S: Final = 5.0
"""How long a request waits for windows."""

_PAGE_MASK: Final = ~(PAGE_BYTES - 1)


class Window:
    """Mapped pages of one guest, in use by `pins` leases."""

    __slots__ = ("mapping", "owner", "pages", "pins")

    def __init__(self, owner: WindowMemory, pages: GpaRange, mapping: Mapping) -> None:
        self.owner = owner
        self.pages = pages
        self.mapping = mapping
        self.pins = 0


class WindowQuota:
    """The windows of all devices of one VM: at most `limit` are mapped at any time.

    Attributes:
        limit: Windows of all devices together.
        device_limit: Windows that one of them may use at a time.
        bound: The bound of VM_WINDOWS, the windows in use.
    """

    def __init__(self, limit: int = WINDOW_LIMIT, deadline_s: float = WINDOW_DEADLINE_S) -> None:
        self.limit = limit
        part, whole = DEVICE_SHARE
        self.device_limit = -(-limit * part // whole)
        self.deadline_s = deadline_s
        self._changed = threading.Condition()
        self._changes = 0
        self._mapped: dict[tuple[WindowMemory, GpaRange], Window] = {}
        self._idle: OrderedDict[Window, None] = OrderedDict()
        self.bound = Bound(Resource.VM_WINDOWS, limit, lambda: self.in_use)

    @property
    def used(self) -> int:
        """Windows that are mapped now, in use or not."""
        return len(self._mapped)

    @property
    def in_use(self) -> int:
        """Windows that requests use now."""
        return max(len(self._mapped) - len(self._idle), 0)

    def acquire(self, owner: WindowMemory, wanted: Collection[GpaRange]) -> list[Window]:
        """Pin a window for each page range, all or none; waits while the quota is in use.

        Raises:
            ResourceExhaustedError: WINDOW_QUOTA_TOO_SMALL: more are wanted than a device may have.
            DeadlineExceededError: WINDOW_DEADLINE: too few came free within the deadline.
            TranslationError: A range is not inside guest memory.
        """
        if len(wanted) > self.device_limit:
            owner.meter.bounds.hit(Resource.WINDOWS)
            raise ResourceExhaustedError(
                "WINDOW_QUOTA_TOO_SMALL",
                f"one request needs {len(wanted)} windows at once; a device has "
                f"{self.device_limit}, and its VM {self.limit}",
                needed=len(wanted),
                limit=self.device_limit,
            )
        with self._changed:
            lacking = self._lacking(owner, wanted)
            if lacking is None:
                return self._pin_all(owner, wanted)
            seen = self._changes
        with owner.meter.counting as counters:
            counters.windows_waited += 1
        deadline = time.monotonic() + self.deadline_s
        while True:
            # A report calls back, so no lock is held.
            owner.meter.bounds.hit(lacking)
            with self._changed:
                seen = self._wait_for_change(seen, owner, wanted, deadline)
                lacking = self._lacking(owner, wanted)
                if lacking is None:
                    return self._pin_all(owner, wanted)

    def release(self, windows: Sequence[Window]) -> None:
        """Unpin windows; they stay mapped until room is needed."""
        with self._changed:
            self._unpin(windows)

    def drop(self, owner: WindowMemory) -> None:
        """Unmap every window of one device, pinned or not; no thread of it may be running."""
        with self._changed:
            for window in [w for w in self._mapped.values() if w.owner is owner]:
                self._idle.pop(window, None)
                self._unmap(window)
            owner.in_use = 0
            self._note_change()

    def _wait_for_change(
        self, seen: int, owner: WindowMemory, wanted: Collection[GpaRange], deadline: float
    ) -> int:
        """Wait until windows come free after `seen` changes; return the changes so far."""
        left_s = deadline - time.monotonic()
        if not self._changed.wait_for(lambda: self._changes != seen, left_s):
            raise DeadlineExceededError(
                "WINDOW_DEADLINE",
                f"a request needs {len(wanted)} windows and waited {self.deadline_s} s; "
                f"{owner.in_use} of the device's {self.device_limit} and {self.in_use} of the "
                f"VM's {self.limit} are in use",
                needed=len(wanted),
                limit=self.limit,
            )
        return self._changes

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def _lacking(self, owner: WindowMemory, wanted: Collection[GpaRange]) -> Resource | None:
        """Return the resource that leaves too little room now; None when there is room."""
        new = len(wanted)
        for pages in wanted:
            window = self._mapped.get((owner, pages))
            new -= window is not None and window.pins > 0
        if owner.in_use + new > self.device_limit:
            return Resource.WINDOWS
        return Resource.VM_WINDOWS if self.in_use + new > self.limit else None

    def _pin_all(self, owner: WindowMemory, wanted: Collection[GpaRange]) -> list[Window]:
        pinned: list[Window] = []
        try:
            for pages in wanted:
                pinned.append(self._pin(owner, pages))
        except Exception:
            self._unpin(pinned)
            raise
        return pinned

    def _pin(self, owner: WindowMemory, pages: GpaRange) -> Window:
        window = self._mapped.get((owner, pages))
        if window is None:
            if len(self._mapped) >= self.limit:
                oldest, _ = self._idle.popitem(last=False)
                self._unmap(oldest)
                with oldest.owner.meter.counting as counters:
                    counters.windows_evicted += 1
            mapping = owner.map_pages(pages)
            window = self._mapped[owner, pages] = Window(owner, pages, mapping)
            with owner.meter.counting as counters:
                counters.windows_mapped += 1
        else:
            self._idle.pop(window, None)
        owner.in_use += window.pins == 0
        window.pins += 1
        return window

    def _unpin(self, windows: Sequence[Window]) -> None:
        for window in windows:
            window.pins -= 1
            if window.pins == 0 and self._mapped.get((window.owner, window.pages)) is window:
                window.owner.in_use -= 1
                self._idle[window] = None
        self._note_change()

    def _unmap(self, window: Window) -> None:
        del self._mapped[window.owner, window.pages]
        window.mapping.close()


class WindowLease:
    """Windows that are pinned until the lease is closed."""

    __slots__ = ("_memory", "_windows")

    def __init__(self, memory: WindowMemory, windows: dict[GpaRange, Window]) -> None:
        self._memory = memory
        self._windows = windows

    def view(self, gpa: int, length: int) -> memoryview:
        """Return [gpa, gpa + length) of a window, mapping it if need be; see `Lease.view`."""
        pages = page_range(gpa, length)
        window = self._windows.get(pages)
        if window is None:
            (window,) = self._memory.quota.acquire(self._memory, (pages,))
            self._windows[pages] = window
        start = gpa - pages[0]
        return window.mapping.view[start : start + length]

    def views(self, addresses: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Return several ranges; see `Lease.views`."""
        return list(map(self.view, addresses, lengths))

    def close(self) -> None:
        """Unpin the windows; see `Lease.close`."""
        windows, self._windows = self._windows, {}
        self._memory.quota.release(list(windows.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WindowMemory(GuestMemory):
    """All of a guest's memory, mapped a buffer at a time.

    Attributes:
        quota: The windows that the devices of the VM share.
        meter: Of the device.
        in_use: Windows that requests of the device use now; the quota counts them.
    """

    def __init__(self, table: RegionTable, quota: WindowQuota, meter: DeviceMeter) -> None:
        super().__init__(table, meter)
        self.quota = quota
        self.meter = meter
        self.in_use = 0
        meter.bounds.add(quota.bound)
        meter.bounds.add(Bound(Resource.WINDOWS, quota.device_limit, lambda: self.in_use))

    def lease(self, addresses: Sequence[int] = (), lengths: Sequence[int] = ()) -> WindowLease:
        """Pin a window for each buffer; see `GuestMemory.lease`."""
        buffers = list(zip(addresses, lengths, strict=True))
        # Checked before any window is asked for: a hostile address must not wait for the quota.
        for gpa, length in buffers:
            if self._table.find(gpa, length) is None:
                raise self.refusal(gpa, length, "guest memory")
        wanted = dict.fromkeys(page_range(gpa, length) for gpa, length in buffers)
        windows = self.quota.acquire(self, wanted)
        return WindowLease(self, dict(zip(wanted, windows, strict=True)))

    def map_pages(self, pages: GpaRange) -> Mapping:
        """Map whole pages for the quota.

        Raises:
            TranslationError: They are not inside one region.
        """
        gpa, length = pages
        region = self._table.find(gpa, length)
        if region is None or region.fd is None:
            raise self.refusal(gpa, length, "guest memory")
        return Mapping(
            region.fd,
            region.file_offset + gpa - region.gpa,
            length,
            self.loss,
            region.page_bytes,
        )

    def _unmap(self) -> None:
        self.quota.drop(self)


def page_range(gpa: int, length: int) -> GpaRange:
    """Widen a range to whole pages."""
    first = gpa & _PAGE_MASK
    return first, ((gpa + length + PAGE_BYTES - 1) & _PAGE_MASK) - first

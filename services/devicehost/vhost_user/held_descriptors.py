"""The descriptors of guest memory that a device holds, and when it gives them up.

A device behind an aperture needs them until its rings are placed, but no message says which ring is
the last: a front-end may use fewer than there are. So they are closed when all rings are placed,
and otherwise when the front-end is silent after the first request. A front-end places its rings
before its guest runs; only one that goes on with a guest's requests may place and enable one ring
after the other while requests wait in the first. Those messages follow each other without a pause.

Owns these times, the gauge, and the reason that is logged. Only the front-end thread calls it. Must
not know messages or sockets (docs/adr/0023-held-descriptors.md).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from services.devicehost.vhost_user.ring_states import RingState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory import Access, RegionTable
    from services.devicehost.vhost_user.ring import Ring

SILENCE_S: Final = 0.25
"""How long a front-end is silent after a request before no further ring is expected of it; and how
often its rings are looked at until then."""

SETTLED_S: Final = 10.0
"""How long it is silent, with a ring that is served, before none is expected without a request."""


class HeldDescriptors:
    """The open descriptors of one device's table of guest memory."""

    def __init__(
        self,
        access: Access,
        table: RegionTable,
        meter: DeviceMeter,
        report: Callable[[int, str], None],
    ) -> None:
        """Begin with those of the table.

        Args:
            access: Says which of them the device needs.
            table: Has them.
            meter: Its gauge is kept up to date.
            report: Called with the number of descriptors that were closed, and why.
        """
        self._access = access
        self._table = table
        self._meter = meter
        self._report = report
        self._last_command_s = time.monotonic()

    def count(self) -> None:
        """Bring the gauge up to date, after the table has changed."""
        self._meter.guest_descriptors = self._table.open_fds

    def heard_from(self) -> None:
        """Note that the front-end has just set something up, the table perhaps."""
        self.count()
        self._last_command_s = time.monotonic()

    def attached(self) -> None:
        """Give them up if rings have to be in what is mapped now; memory has been attached."""
        self.count()
        if self._access.rings_inside:
            self._close("rings are inside the pool")

    def placed(self, rings: Iterable[Ring]) -> None:
        """Give them up if all rings are placed."""
        if all(ring.placed for ring in rings):
            self._close("all rings are placed")

    def look_interval_ms(self, rings: Iterable[Ring]) -> int | None:
        """Return when to `look` if no message comes; None: there is nothing to look for."""
        if self._access.keeps_descriptors or not self._table.open_fds:
            return None
        if not any(ring.state is RingState.SERVED for ring in rings):
            return None
        return math.ceil(SILENCE_S * 1000)

    def look(self, rings: Iterable[Ring]) -> None:
        """Give them up if no further ring is to be expected; no message came for that interval."""
        if any(ring.has_requests for ring in rings):
            self._close("the guest makes requests")
        elif time.monotonic() - self._last_command_s >= SETTLED_S:
            self._close(f"no further ring was placed for {SETTLED_S:g} s")

    def _close(self, why: str) -> None:
        closed = self._access.trim(self._table)
        self.count()
        if closed:
            self._report(closed, why)

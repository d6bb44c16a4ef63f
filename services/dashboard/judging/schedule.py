"""The schedule: which VM is judged when.

A VM is judged a second after spans of it came, so at most once a second while they do, and once
more when it has settled. One whose judging is much work waits longer. Runs on the event loop. Must
not know how a VM is judged.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from services.dashboard.records import Verdict
from services.handshake.errors import PortholeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

logger = logging.getLogger(__name__)

DELAY_S: Final = 1.0
"""Least time from the first span that came to the judging."""

PAUSE: Final = 10.0
"""The pause before a VM is judged again, in multiples of the processor time of its judging.

The time by the clock would say how busy the machine is: on a busy one, every verdict would come
late.
"""

PAUSE_LIMIT_S: Final = 60.0
"""Longest such pause."""

AGAIN_S: Final = 5.0
"""Time until a VM is judged again whose judging failed."""


class Judged(NamedTuple):
    """What became of a judging.

    Attributes:
        verdict: The verdict; None when there is no such VM.
        work_s: The processor time that it took.
    """

    verdict: Verdict | None
    work_s: float


class Schedule:
    """The VMs that are to be judged, and the tasks that have them judged.

    Args:
        judge: Judges a VM and keeps the judgement; gets whether the VM has settled. May raise
            PortholeError.
        settle_s: How long no span of a VM comes until it has settled.
        clock: Seconds, for tests.
    """

    def __init__(
        self,
        judge: Callable[[str, bool], Awaitable[Judged]],
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._judge = judge
        self._settle_s = settle_s
        self._clock = clock
        self._times: dict[str, float] = {}
        # Times that `_times` has no more are passed over.
        self._heap: list[tuple[float, str]] = []
        self._touched: set[str] = set()
        self._quiet_since: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._running: set[str] = set()
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many VMs have spans that are not judged."""
        return len(self._touched)

    def touch(self, vm_ids: Iterable[str]) -> None:
        """Have VMs judged, because spans of them came or went."""
        now = self._clock()
        for vm_id in vm_ids:
            self._quiet_since[vm_id] = now
            if vm_id not in self._touched:
                self._touched.add(vm_id)
                self._plan(vm_id, now + self._pauses.get(vm_id, DELAY_S))
        self._wake.set()

    def forget(self, vm_ids: Iterable[str]) -> None:
        """Leave out VMs that are gone."""
        for vm_id in vm_ids:
            self._touched.discard(vm_id)
            for each in (self._times, self._quiet_since, self._pauses):
                each.pop(vm_id, None)

    def has_settled(self, vm_id: str) -> bool:
        """Return whether no span of a VM has come for a while."""
        since = self._quiet_since.get(vm_id)
        return since is None or self._clock() - since >= self._settle_s

    async def run(self) -> None:
        """Have VMs judged until this task is cancelled; there may be several such tasks."""
        while True:
            vm_id, wait_s = self._next()
            if vm_id is not None:
                await self.judge_now(vm_id)
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def judge_now(self, vm_id: str) -> None:
        """Have one VM judged; later, when it is being judged already."""
        if vm_id in self._running:
            self._plan(vm_id, self._clock() + DELAY_S)
            return
        self._running.add(vm_id)
        try:
            await self._judge_one(vm_id)
        finally:
            self._running.discard(vm_id)

    async def _judge_one(self, vm_id: str) -> None:
        self._touched.discard(vm_id)
        settled = self.has_settled(vm_id)
        try:
            judged = await self._judge(vm_id, settled)
        except PortholeError as error:
            logger.warning("VM %r was not judged: %s", vm_id, error.message)
            self._touched.add(vm_id)
            self._plan(vm_id, self._clock() + AGAIN_S)
            return
        self._keep_pause(vm_id, judged.work_s)
        if vm_id in self._touched:
            return
        if judged.verdict is Verdict.OPEN and not settled:
            self._plan(vm_id, self._quiet_since[vm_id] + self._settle_s)
        else:
            self._quiet_since.pop(vm_id, None)

    def _keep_pause(self, vm_id: str, work_s: float) -> None:
        pause = min(work_s * PAUSE, PAUSE_LIMIT_S)
        if pause > DELAY_S:
            self._pauses[vm_id] = pause
        else:
            self._pauses.pop(vm_id, None)

    def _plan(self, vm_id: str, at: float) -> None:
        self._times[vm_id] = at
        heapq.heappush(self._heap, (at, vm_id))

    def _next(self) -> tuple[str | None, float | None]:
        """Return a VM whose time has come; else None, and the time until the next one's."""
        now = self._clock()
        while self._heap:
            at, vm_id = self._heap[0]
            if self._times.get(vm_id) == at:
                if at > now:
                    return None, at - now
                del self._times[vm_id]
                heapq.heappop(self._heap)
                return vm_id, None
            heapq.heappop(self._heap)
        return None, None

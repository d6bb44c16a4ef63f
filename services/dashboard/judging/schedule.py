"""The schedule: which VM is judged when.

A VM is judged a second after spans of it came, so at most once a second while they do, and once
more when it has settled. Runs on the event loop. Must not know how a VM is judged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from services.dashboard.records import Judgement, Verdict
from services.handshake.errors import PortholeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

logger = logging.getLogger(__name__)

DELAY_S: Final = 1.0
"""Time from the first span that came to the judging."""

AGAIN_S: Final = 5.0
"""Time until a VM is judged again whose judging failed."""


class Schedule:
    """The VMs that are to be judged, and the task that has them judged one by one.

    Args:
        judge: Judges a VM and keeps the judgement; gets whether the VM has settled. Returns None
            when there is no such VM. May raise PortholeError.
        settle_s: How long no span of a VM comes until it has settled.
        clock: Seconds, for tests.
    """

    def __init__(
        self,
        judge: Callable[[str, bool], Awaitable[Judgement | None]],
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._judge = judge
        self._settle_s = settle_s
        self._clock = clock
        # Each dictionary is in the order of the times in it, or nearly so: its delay is constant.
        self._due: dict[str, float] = {}
        self._settling: dict[str, float] = {}
        self._again: dict[str, float] = {}
        self._quiet_since: dict[str, float] = {}
        self._running: set[str] = set()
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many VMs are to be judged."""
        return len(self._due) + len(self._again)

    def touch(self, vm_ids: Iterable[str]) -> None:
        """Have VMs judged, because spans of them came or went."""
        now = self._clock()
        for vm_id in vm_ids:
            self._quiet_since[vm_id] = now
            self._settling.pop(vm_id, None)
            self._due.setdefault(vm_id, now + DELAY_S)
        self._wake.set()

    def forget(self, vm_ids: Iterable[str]) -> None:
        """Leave out VMs that are gone."""
        for vm_id in vm_ids:
            for each in (self._due, self._settling, self._again, self._quiet_since):
                each.pop(vm_id, None)

    def has_settled(self, vm_id: str) -> bool:
        """Return whether no span of a VM has come for a while."""
        since = self._quiet_since.get(vm_id)
        return since is None or self._clock() - since >= self._settle_s

    async def run(self) -> None:
        """Have VMs judged until this task is cancelled; there may be several such tasks."""
        while True:
            vm_id, wait_s = self._next()
            if vm_id is None:
                self._wake.clear()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            await self.judge_now(vm_id)

    async def judge_now(self, vm_id: str) -> None:
        """Have one VM judged; later, when it is being judged already."""
        if vm_id in self._running:
            self._due.setdefault(vm_id, self._clock() + DELAY_S)
            return
        self._running.add(vm_id)
        try:
            await self._judge_one(vm_id)
        finally:
            self._running.discard(vm_id)

    async def _judge_one(self, vm_id: str) -> None:
        settled = self.has_settled(vm_id)
        try:
            judgement = await self._judge(vm_id, settled)
        except PortholeError as error:
            logger.warning("VM %r was not judged: %s", vm_id, error.message)
            self._again[vm_id] = self._clock() + AGAIN_S
            return
        if vm_id in self._due:
            return
        if judgement is not None and judgement.verdict is Verdict.OPEN and not settled:
            self._settling[vm_id] = self._quiet_since[vm_id] + self._settle_s
        else:
            self._quiet_since.pop(vm_id, None)

    def _next(self) -> tuple[str | None, float | None]:
        """Return a VM whose time has come; else None, and the time until the next one's."""
        now = self._clock()
        soonest: float | None = None
        for waiting in (self._due, self._settling, self._again):
            for vm_id, at in waiting.items():
                if at <= now:
                    del waiting[vm_id]
                    return vm_id, None
                soonest = at - now if soonest is None else min(soonest, at - now)
                break
        return None, soonest

"""The links of the adapters of one VM, as its machine is told of them.

A device reports its link to whoever asks for its configuration space. QEMU's adapters do not, so
the machine is told what the device host reports, and again after a failure that may pass. Owns what
the machine was told, and the task that tells it. Must not know device hosts, or how a guest sees a
link.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import PortholeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

RETRY_S: Final = 5.0
"""Before the machine is told again what it could not be told, unless there is news before."""


@dataclass(slots=True)
class _Link:
    """One link.

    Attributes:
        is_attached: Whether the machine has the adapter.
        is_up: What its device host has reported last.
        was_lost: Whether it has gone since the machine was told; it may be back.
        is_told_up: What the machine was told last; None: it may have heard it, or not.
    """

    is_attached: bool = False
    is_up: bool = True
    was_lost: bool = False
    is_told_up: bool | None = True


class AdapterLinks:
    """The links of one VM.

    A link that goes and comes back before the machine could be told goes and comes back in the
    guest as well, once: that is how a guest learns that its network may be another one.

    Args:
        set_link: Tells the machine whether an adapter has its link.
    """

    def __init__(self, set_link: Callable[[str, bool], Awaitable[None]]) -> None:
        self._set_link = set_link
        self._links: dict[str, _Link] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def attached(self, instance_id: str) -> None:
        """Take note that the machine has an adapter, whose guest takes its link to be up."""
        self._links.setdefault(instance_id, _Link()).is_attached = True
        self._changed.set()

    def report(self, instance_id: str, is_up: bool) -> None:
        """Take note of what a device host has reported; the machine may not have the adapter."""
        link = self._links.setdefault(instance_id, _Link())
        link.was_lost |= not is_up
        link.is_up = is_up
        self._changed.set()
        if self._task is None:
            # It outlives the operation that began it, and belongs to no VM's trace.
            self._task = asyncio.create_task(self._tell_machine(), context=contextvars.Context())

    def forget(self, instance_id: str) -> None:
        """Forget an adapter, if it is known."""
        self._links.pop(instance_id, None)

    async def close(self) -> None:
        """End the task; a second call does nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _tell_machine(self) -> None:
        all_told = True
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if all_told else RETRY_S):
                    await self._changed.wait()
            self._changed.clear()
            all_told = True
            for instance_id, link in tuple(self._links.items()):
                if link.is_attached and not await self._told(instance_id, link):
                    all_told = False

    async def _told(self, instance_id: str, link: _Link) -> bool:
        """Tell the machine of a link; return whether nothing is left to be told."""
        if link.was_lost:
            link.was_lost = False
            if not await self._tell(instance_id, link, is_up=False):
                link.was_lost = True
                return False
        return not link.is_up or await self._tell(instance_id, link, is_up=True)

    async def _tell(self, instance_id: str, link: _Link, *, is_up: bool) -> bool:
        """Tell the machine, if it was told otherwise; return False if it is to be told again."""
        if link.is_told_up == is_up:
            return True
        try:
            await self._set_link(instance_id, is_up)
        except PortholeError as failure:
            logger.info("device %s: its guest was not told of its link: %s", instance_id, failure)
            if failure.retryable:
                link.is_told_up = None
                return False
            # It may have been unplugged meanwhile.
        link.is_told_up = is_up
        return True

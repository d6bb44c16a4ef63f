"""Localhost forwarding: a port on which the guest listens is one of the host's loopback, too.

Owns which of the reported ports are mapped, when, and how often. What a guest reports is not
trusted: it gets ports of the host's loopback only, none below FIRST_PORT, at most MAX_PORTS; each
round of changes has a bound and a pause after it, and all changes have a budget. Must not know
gRPC, nor how a port is mapped.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from services.handshake.errors import PortholeError
from services.handshake.ports import PortKey, PortMapping, PortProtocol
from services.vm_owner import warnings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from collections.abc import Set as AbstractSet

    from services.vm_owner.record import VmRecord

logger = logging.getLogger(__name__)

FIRST_PORT: Final = 1024
"""The lowest port that is mapped by itself; those below are for programs of the host's root."""
MAX_PORTS: Final = 64
"""Mappings of one VM that are made by themselves."""
ROUND_CHANGES: Final = 16
"""The most mappings that change at a time."""
PAUSE_S: Final = 1.0
"""Between two rounds of changes; reports that come meanwhile replace each other."""
BURST_CHANGES: Final = 2 * MAX_PORTS
"""The changes that a VM may make, tries included, before it has to wait: all ports come and go."""
CHANGE_S: Final = 60.0
"""How long it takes until one more change may be made. Each is an event in the trace, and an owner
judges no VM that has more than EVENTS_KEPT: a guest that flaps ports takes hours to get there."""
RETRY_S: Final = 5.0
"""Before guest init is asked again after it was lost, and the first pause after a change that could
not be made; the pause doubles until one is answered."""
LONGEST_RETRY_S: Final = 60.0
"""The longest pause after a change that could not be made."""

LOOPBACK_IPV4: Final = "127.0.0.1"
LOOPBACK_IPV6: Final = "::1"


class Listener(NamedTuple):
    """A TCP port on which the guest says that it listens, unchecked."""

    port: int
    ipv4: bool
    ipv6: bool


class ListenerReports(Protocol):
    """A connected guest init; every failure of a call is a PortholeError."""

    def listeners(self) -> AsyncIterator[list[Listener]]:
        """Stream all ports on which the guest listens, whenever they change."""

    async def close(self) -> None:
        """Disconnect."""


class ChangeBudget:
    """The changes that may still be made: BURST_CHANGES, and one more each CHANGE_S up to that."""

    def __init__(self) -> None:
        self._full_at_s = 0.0

    def take(self, now_s: float) -> float:
        """Take one change; return 0, or in how many seconds there will be one.

        Args:
            now_s: A monotonic time.
        """
        full_at_s = max(self._full_at_s, now_s) + CHANGE_S
        wait_s = full_at_s - now_s - BURST_CHANGES * CHANGE_S
        if wait_s > 0:
            return wait_s
        self._full_at_s = full_at_s
        return 0.0


class LocalhostForwarding:
    """The forwarding of one VM, from `start` until `close`.

    Args:
        record: The VM's record.
        dial: Connects to guest init.
        map_port: Maps a port; as an operation of its own, with the VM's lock.
        unmap_port: Ends a mapping that `map_port` has returned, likewise. It does nothing if that
            mapping is no more, even if there is another one of the same port.
    """

    def __init__(
        self,
        record: VmRecord,
        dial: Callable[[], Awaitable[ListenerReports]],
        map_port: Callable[[PortMapping], Awaitable[PortMapping]],
        unmap_port: Callable[[PortMapping], Awaitable[None]],
    ) -> None:
        self._record = record
        self._dial = dial
        self._map_port = map_port
        self._unmap_port = unmap_port
        self._wanted: frozenset[PortKey] = frozenset()
        self._changed = asyncio.Event()
        self._mapped: dict[PortKey, PortMapping] = {}
        self._refused: set[PortKey] = set()
        self._budget = ChangeBudget()
        self._retry_s = RETRY_S
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow what the guest reports."""
        # They belong to no operation, and so to no span of the VM's trace.
        context = contextvars.Context()
        for work in (self._follow(), self._apply()):
            self._tasks.append(asyncio.create_task(work, context=context))

    async def close(self) -> None:
        """Follow no longer; the mappings end with the adapter."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        while True:
            try:
                guest_init = await self._dial()
                try:
                    async for reported in guest_init.listeners():
                        self._want(reported)
                finally:
                    await guest_init.close()
            except PortholeError as failure:
                logger.debug("VM %s: no ports are reported: %s", self._record.vm_id, failure)
                if not failure.retryable:
                    return  # an older guest init, or mini_init
            await asyncio.sleep(RETRY_S)

    def _want(self, reported: Iterable[Listener]) -> None:
        self._wanted, left_out = wanted_keys(reported, self._mapped.keys())
        self._refused &= self._wanted
        if left_out:
            self._record.warn_once(warnings.ports_left_out(left_out, MAX_PORTS))
        self._changed.set()

    async def _apply(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.sleep(await self._change())

    async def _change(self) -> float:
        """Make a round of changes; return the pause until the next one, in seconds."""
        for _ in range(ROUND_CHANGES):
            key = self._next()
            if key is None:
                return PAUSE_S
            wait_s = self._budget.take(asyncio.get_running_loop().time())
            if wait_s > 0:
                logger.info("VM %s: its ports change so often that they wait", self._record.vm_id)
                self._changed.set()
                return wait_s
            try:
                await (self._unmap(key) if key in self._mapped else self._map(key))
            except PortholeError as failure:
                # It would fail for the others as well, each with the VM's lock held meanwhile.
                logger.debug("VM %s: ports are changed later: %s", self._record.vm_id, failure)
                self._changed.set()
                pause_s, self._retry_s = self._retry_s, min(2 * self._retry_s, LONGEST_RETRY_S)
                return pause_s
            self._retry_s = RETRY_S
        self._changed.set()
        return PAUSE_S

    def _next(self) -> PortKey | None:
        """Return a port whose mapping is to be made, or ended if it is mapped; None: there is none.

        What is not wanted any more, by the latest report, goes first, and nothing is mapped before:
        so what is mapped is always among what was wanted, which has a bound.
        """
        unwanted = self._mapped.keys() - self._wanted
        missing = self._wanted - self._mapped.keys() - self._refused
        return min(unwanted or missing, key=_by_port, default=None)

    async def _map(self, key: PortKey) -> None:
        """Map a port, or take note that it is refused.

        Raises:
            PortholeError: It may be mapped later.
        """
        try:
            self._mapped[key] = await self._map_port(PortMapping(key, key.port))
        except PortholeError as failure:
            # A table that is full stays so until somebody unmaps a port.
            if failure.retryable and failure.reason != "PORTS_EXHAUSTED":
                raise
            self._refused.add(key)
            # passt without IPv6 refuses all of them, and the port is reached by IPv4.
            if key.address == LOOPBACK_IPV4:
                self._record.warn_once(warnings.port_not_forwarded(str(key), failure))

    async def _unmap(self, key: PortKey) -> None:
        """End a mapping.

        Raises:
            PortholeError: It may be ended later.
        """
        try:
            await self._unmap_port(self._mapped[key])
        except PortholeError as failure:
            if failure.retryable:
                raise
            # The VM ends, and its mappings with it, or the host cannot end this one.
            logger.debug("VM %s: %s is not unmapped: %s", self._record.vm_id, key, failure)
        del self._mapped[key]


def wanted_keys(
    reported: Iterable[Listener], mapped: AbstractSet[PortKey]
) -> tuple[frozenset[PortKey], int]:
    """Return which ports of the host are to be mapped, and how many that may be are too many.

    Args:
        reported: What the guest says.
        mapped: What is mapped; it stays as long as it is reported.
    """
    allowed = {
        PortKey(PortProtocol.TCP, address, listener.port)
        for listener in reported
        if FIRST_PORT <= listener.port <= 0xFFFF
        for address, serves in ((LOOPBACK_IPV4, listener.ipv4), (LOOPBACK_IPV6, listener.ipv6))
        if serves
    }
    kept = allowed & mapped
    added = sorted(allowed - kept, key=_by_port)[: max(0, MAX_PORTS - len(kept))]
    wanted = frozenset({*kept, *added})
    return wanted, len(allowed) - len(wanted)


def _by_port(key: PortKey) -> tuple[int, str]:
    return key.port, key.address

"""The device hosts of this owner: the ordinary user's and the elevated user's.

Owns the two connections, which are made at the first use, and the stream of device events of each.
Must not know VMs: code that uses a device host for a VM announces that VM's pool first.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from services.handshake.errors import FailedPreconditionError, PortholeError
from services.handshake.features import GUEST_CAPABILITIES, SWIOTLB_TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from services.handshake.exhaustion import Exhaustion
    from services.handshake.ports import PortKey, PortMapping
    from services.handshake.rate_limit import RateLimits

logger = logging.getLogger(__name__)

WATCH_RETRY_S: Final = 1.0
"""Pause before an event stream that ended is opened again."""

UNSPECIFIED: Final = "unspecified"
"""State of a device whose device host does not report one."""


@dataclass(frozen=True, slots=True)
class DeviceHostVersion:
    """What a device host announces of itself.

    Attributes:
        software: Version of its software, for people.
        features: Its features, with those that this owner does not know.
    """

    software: str
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a device host is to know of a VM.

    Attributes:
        token: The token of the latched pool; None: none is latched.
        capabilities: The message of what is in force of the guest's capabilities.
    """

    vm_id: str
    token: str | None
    capabilities: bytes


@dataclass(frozen=True, slots=True)
class UserNetwork:
    """The back end of an adapter on a user-mode network (device_host.proto, UserBackend).

    Attributes:
        dns_forward: Addresses in the guest's network that name servers of the host answer at.
        host_loopback: Addresses in the guest's network at which it reaches the host's loopback.
        mtu: Bytes of payload per frame; as many as passt takes, which is the fastest.
    """

    dns_forward: tuple[str, ...] = ()
    host_loopback: tuple[str, ...] = ()
    mtu: int = 65520


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device that a device host is to create.

    Attributes:
        device_class: events.FS or events.NET.
        options: The whole options string.
        backend: A directory (FS); the name of a TAP interface, or a user-mode network (NET). None:
            an aggregate (FS); shares are added to it with NewChild.
    """

    vm_id: str
    instance_id: str
    device_class: str
    tag: str
    options: str
    backend: str | UserNetwork | None


@dataclass(frozen=True, slots=True)
class NewChild:
    """A share that an aggregate device is to get.

    Attributes:
        instance_id: Id of the device.
        name: Name of the share's directory in the root of the device.
        options: The whole options string of the share.
        shared_dir: The directory on the host.
    """

    vm_id: str
    instance_id: str
    name: str
    options: str
    shared_dir: str


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """The status of a device, as its device host reports it.

    Attributes:
        state: Name of the state, lower case.
        counters: Values by the names of porthole.handshake.v1.DeviceCounters.
        exhaustion: The resource that it has just used up; None: the status reports a state.
        children: Names of the shares of an aggregate.
        link_up: Whether an adapter has its link; None: it is no adapter, or that is not known.
    """

    vm_id: str
    instance_id: str
    tag: str
    state: str = UNSPECIFIED
    counters: Mapping[str, int] = field(default_factory=dict)
    detail: str = ""
    exhaustion: Exhaustion | None = None
    children: tuple[str, ...] = ()
    link_up: bool | None = None


class DeviceHost(Protocol):
    """A connected device host; every failure of a call is a PortholeError."""

    async def version(self) -> DeviceHostVersion:
        """Ask for the version; a device host that has restarted may have another."""

    async def set_swiotlb(self, vm_id: str, token: str, capabilities: bytes | None) -> None:
        """Announce the token of a VM, empty without a pool, and its capabilities, if not None."""

    async def create_device(self, device: NewDevice) -> str:
        """Create a device; returns the path of its vhost-user socket."""

    async def remove_device(self, vm_id: str, instance_id: str) -> None:
        """Tear a device down."""

    async def add_child(self, child: NewChild) -> None:
        """Add a share to an aggregate device."""

    async def remove_child(self, vm_id: str, instance_id: str, name: str) -> None:
        """Remove a share from an aggregate device."""

    async def map_port(self, vm_id: str, instance_id: str, wanted: PortMapping) -> PortMapping:
        """Map a port; the host listens when this returns."""

    async def unmap_port(self, vm_id: str, instance_id: str, key: PortKey) -> None:
        """End a mapping."""

    async def list_ports(self, vm_id: str, instance_id: str) -> list[PortMapping]:
        """List the mappings of an adapter, in the order in which they were made."""

    async def set_rate_limits(self, vm_id: str, instance_id: str, limits: RateLimits) -> RateLimits:
        """Change how fast frames of an adapter may go; return what is in force."""

    async def forget_vm(self, vm_id: str) -> None:
        """Tear down all remaining devices of a VM, and forget its pool."""

    async def list_devices(self, vm_id: str) -> list[DeviceStatus]:
        """List the devices of a VM."""

    def watch(self) -> AsyncIterator[DeviceStatus]:
        """Stream the changes of the devices of all VMs."""

    async def close(self) -> None:
        """Disconnect."""


async def announce(
    host: DeviceHost, version: DeviceHostVersion, announcement: Announcement
) -> None:
    """Announce to one device host as much of a VM as its features take.

    Raises:
        PortholeError: The device host refuses, or cannot be reached.
    """
    token = announcement.token if SWIOTLB_TOKEN in version.features else None
    whole = GUEST_CAPABILITIES in version.features
    if token is not None or whole:
        capabilities = announcement.capabilities if whole else None
        await host.set_swiotlb(announcement.vm_id, token or "", capabilities)


class DeviceHosts:
    """Both device hosts, each connected at its first use.

    Args:
        dial: Connects to the ordinary (False) or the elevated (True) device host. There may be no
            elevated one.
        on_status: Called with each status of a device that its device host reports.
        on_stream_end: Called when the event stream of a device host ends; True: of the elevated
            one.
    """

    def __init__(
        self,
        dial: Mapping[bool, Callable[[], Awaitable[DeviceHost]]],
        on_status: Callable[[DeviceStatus], None],
        on_stream_end: Callable[[bool], None],
    ) -> None:
        self._dial = dial
        self._on_status = on_status
        self._on_stream_end = on_stream_end
        self._hosts: dict[bool, DeviceHost] = {}
        self._connecting: dict[bool, asyncio.Task[DeviceHost]] = {}
        self._watches: list[asyncio.Task[None]] = []

    async def get(self, *, elevated: bool) -> DeviceHost:
        """Return a connected device host; connect at the first use.

        It waits for one attempt to connect at most, which others may have begun.

        Raises:
            UnavailableError: PEER_UNAVAILABLE.
            FailedPreconditionError: NO_ELEVATED_DEVICE_HOST, or API_VERSION_MISMATCH.
        """
        if elevated not in self._dial:
            raise FailedPreconditionError(
                "NO_ELEVATED_DEVICE_HOST",
                "this owner has no device host for the elevated user; start the owner with "
                "--elevated-devicehost <address>, or add the device without elevated",
            )
        if elevated in self._hosts:
            return self._hosts[elevated]
        # There is one attempt at a time, because with two connections every change would be
        # reported twice. All waiting operations share its outcome: each of them holds the lock of a
        # VM, and must not hold it for one attempt per VM. The task has a context of its own: it
        # outlives the operation that began it, and belongs to no VM's trace.
        if elevated not in self._connecting:
            self._connecting[elevated] = asyncio.create_task(
                self._connect(elevated), context=contextvars.Context()
            )
        return await asyncio.shield(self._connecting[elevated])

    def connected(self, *, elevated: bool) -> DeviceHost | None:
        """Return a device host if it is connected."""
        return self._hosts.get(elevated)

    async def announce(self, announcement: Announcement) -> None:
        """Announce a VM's pool and capabilities to the connected device hosts.

        GuestDevices announces it again before every device, which covers a device host that
        connects later or cannot be reached now.
        """
        for host in tuple(self._hosts.values()):
            try:
                await announce(host, await host.version(), announcement)
            except PortholeError as failure:
                logger.warning(
                    "VM %s: its capabilities were not announced to a device host: %s",
                    announcement.vm_id,
                    failure,
                )

    async def forget(self, vm_id: str) -> None:
        """Have the connected device hosts forget a VM that has ended."""
        for host in tuple(self._hosts.values()):
            try:
                await host.forget_vm(vm_id)
            except PortholeError as failure:
                logger.warning("VM %s: a device host still remembers it: %s", vm_id, failure)

    async def statuses(self, vm_id: str) -> dict[str, DeviceStatus]:
        """Return the status of each device of a VM, by instance id.

        The devices of a device host that is not connected, or does not answer, are missing.
        """
        found: dict[str, DeviceStatus] = {}
        for host in tuple(self._hosts.values()):
            try:
                devices = await host.list_devices(vm_id)
            except PortholeError as failure:
                logger.warning("VM %s: a device host does not list its devices: %s", vm_id, failure)
            else:
                found.update((device.instance_id, device) for device in devices)
        return found

    async def close(self) -> None:
        """Disconnect from both, whatever has failed meanwhile."""
        tasks = [*self._connecting.values(), *self._watches]
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        hosts = list(self._hosts.values())
        self._hosts.clear()
        ends += await asyncio.gather(*(host.close() for host in hosts), return_exceptions=True)
        for failure in ends:
            if isinstance(failure, Exception) and not isinstance(failure, PortholeError):
                logger.error("the connection to a device host failed", exc_info=failure)

    async def _connect(self, elevated: bool) -> DeviceHost:
        try:
            host = await self._dial[elevated]()
        finally:
            del self._connecting[elevated]
        self._hosts[elevated] = host
        self._watches.append(asyncio.create_task(self._watch(host, elevated)))
        return host

    async def _watch(self, host: DeviceHost, elevated: bool) -> None:
        ended = False
        while True:
            try:
                async for status in host.watch():
                    ended = False
                    self._on_status(status)
            except PortholeError as failure:
                if not ended:
                    logger.warning("the event stream of a device host ended: %s", failure)
            if not ended:
                self._on_stream_end(elevated)
            ended = True
            await asyncio.sleep(WATCH_RETRY_S)

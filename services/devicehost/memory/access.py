"""How one device reaches guest memory: an aperture, windows on demand, or all of it.

Owns everything that follows from that choice. No other module asks which of the three a device
has; it asks for the fact that it needs. Must not know why one was chosen, queues, devices or
vhost-user.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, final

from services.devicehost.memory.aperture import ApertureMemory
from services.devicehost.memory.whole import WholeMemory
from services.devicehost.memory.windows import WindowMemory, WindowQuota
from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.options import RINGS_INSIDE
from services.handshake.pool import MAX_MAPPING_BYTES, SwiotlbPool

if TYPE_CHECKING:
    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory.guest import GuestMemory
    from services.devicehost.memory.regions import RegionTable

MAX_REQUEST_BYTES: Final = 1 << 20
"""Most bytes of data in a request that no pool bounds: the default limit of Linux (kernel:
fs/fuse/inode.c, fuse_max_pages_limit = 256 pages)."""


class Access(ABC):
    """The way to guest memory of one device; one of Aperture, Windows and Whole.

    Attributes:
        pool: The pool that the device is confined to; None without one.
        keeps_descriptors: Whether the descriptors of guest memory stay open while the device is
            attached. Only then can regions be added and removed one at a time; otherwise a
            front-end must send the whole table again, with its descriptors.
        max_request_bytes: Most bytes of data that the guest can map for one request, for any
            device class.
        log_level: Severity of this choice, of the logging module.
        rings_inside: Whether rings have to be in the pool, so that nothing else is ever mapped.
        warning: The end of a log line about a device that is not confined; otherwise empty.
    """

    __slots__ = ()

    pool: SwiotlbPool | None = None
    rings_inside: bool = False
    keeps_descriptors: ClassVar[bool]
    max_request_bytes: ClassVar[int]
    log_level: ClassVar[int] = logging.INFO
    warning: ClassVar[str] = ""

    @abstractmethod
    def attach(self, table: RegionTable, meter: DeviceMeter) -> GuestMemory:
        """Make the guest memory of a device.

        Args:
            table: The regions that the front-end shares.
            meter: Of the device.

        Raises:
            InvalidArgumentError: A region cannot be mapped; see Mapping.
            FailedPreconditionError: POOL_NOT_IN_GUEST_MEMORY or REGION_CLOSED.
        """

    def trim(self, table: RegionTable) -> int:
        """Close the descriptors that are not needed any more, now that all rings are placed.

        Returns:
            How many were closed.
        """
        return 0 if self.keeps_descriptors else table.close_fds()

    def with_rings(self, where: str) -> Access:
        """Return this access with the value of the option `rings`, one of RINGS_MODES.

        Raises:
            InvalidArgumentError: RINGS_WITHOUT_POOL.
        """
        if where != RINGS_INSIDE:
            return self
        raise InvalidArgumentError(
            "RINGS_WITHOUT_POOL",
            f"rings={RINGS_INSIDE} keeps the rings in the guest's bounce pool, and the device has "
            "no pool; give it the token of one (swiotlb=0x<base>,<size>), or leave the option out",
        )

    @abstractmethod
    def attached_event(
        self, vm_id: str, instance_id: str, device_class: str, tag: str
    ) -> events.Event | None:
        """Return the handshake event that follows on attaching; None if there is none."""

    @abstractmethod
    def __str__(self) -> str:
        """Describe for the log which part of guest memory is mapped."""


@final
@dataclass(frozen=True, slots=True)
class Aperture(Access):
    """A mapping of exactly the pool, made once.

    When the rings are placed, every page that the device may ever touch is mapped. Its descriptors
    of guest memory are closed then, so it cannot map any other. With `rings_inside` they are closed
    as soon as the pool is mapped. A device that has a part of the pool for itself always has its
    rings in it: whoever divides the pool has the guest place them there, and the descriptors are
    those of other devices' parts.

    Attributes:
        pool: All that is mapped: the pool of the VM, or the device's own part of it.
    """

    pool: SwiotlbPool
    rings_inside: bool = False

    keeps_descriptors = False
    max_request_bytes = MAX_MAPPING_BYTES

    def attach(self, table: RegionTable, meter: DeviceMeter) -> GuestMemory:
        """Map the pool; see ApertureMemory."""
        return ApertureMemory(table, self.pool, meter, rings_inside=self.rings_inside)

    def with_rings(self, where: str) -> Aperture:
        """See Access."""
        return replace(self, rings_inside=self.rings_inside or where == RINGS_INSIDE)

    def attached_event(
        self, vm_id: str, instance_id: str, device_class: str, tag: str
    ) -> events.Event:
        """Return ApertureCreated."""
        return events.aperture_created(vm_id, instance_id, device_class, tag, self.pool)

    def __str__(self) -> str:
        rings = ", and no ring outside it" if self.rings_inside else ""
        return f"only {self.pool} is mapped{rings}"


@final
@dataclass(frozen=True, slots=True)
class Windows(Access):
    """Guest buffers, mapped on demand.

    Attributes:
        quota: Windows that the devices of the VM share.
    """

    quota: WindowQuota

    keeps_descriptors = True
    max_request_bytes = MAX_REQUEST_BYTES

    def attach(self, table: RegionTable, meter: DeviceMeter) -> GuestMemory:
        """Map nothing yet; see WindowMemory."""
        return WindowMemory(table, self.quota, meter)

    def attached_event(
        self, vm_id: str, instance_id: str, device_class: str, tag: str
    ) -> events.Event:
        """Return WindowsEnabled."""
        return events.windows_enabled(vm_id, instance_id, device_class, tag)

    def __str__(self) -> str:
        return f"up to {self.quota.device_limit} windows of it are mapped at a time, on demand"


@final
@dataclass(frozen=True, slots=True)
class Whole(Access):
    """All of guest memory, mapped once: the device is not confined.

    No handshake knows such a device: it belongs to a process of its own, without a VM owner.
    """

    keeps_descriptors = True
    max_request_bytes = MAX_REQUEST_BYTES
    log_level = logging.WARNING
    warning = "; the device is not confined: the guest's bounce pool or windows would confine it"

    def attach(self, table: RegionTable, meter: DeviceMeter) -> GuestMemory:
        """Map every region; see WholeMemory."""
        return WholeMemory(table, meter)

    def attached_event(self, vm_id: str, instance_id: str, device_class: str, tag: str) -> None:
        """Return None."""

    def __str__(self) -> str:
        return "all of it is mapped"


def confined(
    pool: SwiotlbPool | None, quota: WindowQuota, part: SwiotlbPool | None = None
) -> Aperture | Windows:
    """Return the access of a confined device: to its VM's pool, or without one by windows.

    Args:
        pool: The pool of the VM.
        quota: Windows that the devices of the VM share.
        part: The part of the pool that is this device's own; None: it has all of the pool.
    """
    if part is not None:
        return Aperture(part, rings_inside=True)
    return Aperture(pool) if pool is not None else Windows(quota)

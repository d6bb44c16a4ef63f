"""The devices: one folder per virtio device type, each with the same files for the same roles.

- `device.py`: the VirtioDevice: its features, its configuration space, its queues and how each is
  served.
- `protocol.py`: what the buffers of a driver mean, and what is put into them. Knows no queue. Each
  frame of `net` stands alone, so its protocol is functions. Requests of `fs` are valid from INIT to
  DESTROY, so its protocol is a FuseSession, which has the guest's mount in between.
- `backend.py`: the part of the host that a device serves: how a request names it, how it is opened,
  and which error explains a failure. Knows no queue.

A device that needs more has packages beside these files, as `fs` has. Every VirtioDevice is made
from options, a back end, a bound on requests and a meter; the one table from back ends to devices
is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from services.devicehost.devices.fs.backend import AggregateBackend, FsBackend
from services.devicehost.devices.fs.device import FsDevice
from services.devicehost.devices.net.backend import NetBackend, UserBackend
from services.devicehost.devices.net.device import NetDevice
from services.devicehost.devices.net.user import (
    UserSettings,
)
from services.handshake.events import FS, NET
from services.handshake.options import (
    FsOptions,
    NetOptions,
    parse_fs_options,
    parse_net_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory import Access
    from services.devicehost.virtio.device import VirtioDevice

__all__ = [
    "DEVICE_TYPES",
    "AggregateBackend",
    "DeviceBackend",
    "DeviceOptions",
    "DeviceType",
    "FsBackend",
    "FsDevice",
    "NetBackend",
    "NetDevice",
    "UserBackend",
    "UserSettings",
    "make_device",
]

DeviceBackend = FsBackend | AggregateBackend | NetBackend | UserBackend
DeviceOptions = FsOptions | NetOptions

OptionsT = TypeVar("OptionsT", FsOptions, NetOptions)


@dataclass(frozen=True, slots=True)
class DeviceType(Generic[OptionsT]):
    """One row of the table.

    Attributes:
        device_class: events.FS or events.NET.
        parse_options: Parses the options string of such a device.
        make: Makes the device; raises PortholeError when its back end cannot be opened.
    """

    device_class: str
    parse_options: Callable[[str], OptionsT]
    make: Callable[[OptionsT, Any, int, DeviceMeter], VirtioDevice]


def _make_net(
    options: NetOptions,
    backend: NetBackend | UserBackend,
    _max_request_bytes: int,
    meter: DeviceMeter,
) -> NetDevice:
    """Make an adapter, whose frames are shorter than any bound on a request."""
    return NetDevice(options, backend, meter)


DEVICE_TYPES: Final[dict[type[DeviceBackend], DeviceType[Any]]] = {
    FsBackend: DeviceType(FS, parse_fs_options, FsDevice),
    AggregateBackend: DeviceType(FS, parse_fs_options, FsDevice),
    NetBackend: DeviceType(NET, parse_net_options, _make_net),
    UserBackend: DeviceType(NET, parse_net_options, _make_net),
}
"""The type of device that serves a back end."""


def make_device(
    options: DeviceOptions, backend: DeviceBackend, access: Access, meter: DeviceMeter
) -> VirtioDevice:
    """Make the device that serves a back end.

    Args:
        options: The device's options, parsed by its row of DEVICE_TYPES.
        backend: The back end to serve.
        access: How it is to reach guest memory.
        meter: Of the device.

    Raises:
        PortholeError: The back end cannot be opened.
    """
    return DEVICE_TYPES[type(backend)].make(options, backend, access.max_request_bytes, meter)

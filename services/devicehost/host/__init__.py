"""The device host itself: which devices exist, for which VM, and what they are going through.

`states` is the life of a device as data, `device` one device with all its parts, `registry` all of
them. No gRPC, protobuf or OpenTelemetry here: the servicer brings those.
"""

from services.devicehost.devices import AggregateBackend, FsBackend, NetBackend
from services.devicehost.host.device import DeviceInfo, HostedDevice
from services.devicehost.host.registry import DeviceHost
from services.devicehost.host.specs import ChildSpec, DeviceSpec
from services.devicehost.host.states import DeviceState

__all__ = [
    "AggregateBackend",
    "ChildSpec",
    "DeviceHost",
    "DeviceInfo",
    "DeviceSpec",
    "DeviceState",
    "FsBackend",
    "HostedDevice",
    "NetBackend",
]

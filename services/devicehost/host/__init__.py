"""The devices of the host: their life, their parts, and the VM that each belongs to.

`states` is the life of a device as data, `device` one device with all its parts, `registry` all
devices by VM, `specs` the requests for devices and shares. Must not know gRPC, protobuf or
OpenTelemetry.
"""

from services.devicehost.devices import (
    AggregateBackend,
    FsBackend,
    NetBackend,
    UserBackend,
    UserSettings,
)
from services.devicehost.host.device import DeviceInfo, HostedDevice
from services.devicehost.host.registry import DeviceHost
from services.devicehost.host.specs import ChildSpec, DeviceSpec, Published
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
    "Published",
    "UserBackend",
    "UserSettings",
]

"""The conversion between protobuf and the values of services.handshake.

Fields that this version does not know stay in the protobuf message only: code that forwards
capabilities forwards the message, not the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from google.protobuf.duration_pb2 import Duration
from porthole.handshake.v1 import device_pb2, guest_capabilities_pb2, port_pb2, rate_limit_pb2

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities
from services.handshake.errors import InvalidArgumentError
from services.handshake.exhaustion import Exhaustion
from services.handshake.pool import pool_from_announcement
from services.handshake.ports import PortKey, PortMapping, PortProtocol, PortState
from services.handshake.rate_limit import RateLimit, RateLimits, checked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.handshake.pool import SwiotlbPool

_CLASSES: Final[Mapping[str, device_pb2.DeviceClass.ValueType]] = {
    events.FS: device_pb2.DEVICE_CLASS_VIRTIO_FS,
    events.NET: device_pb2.DEVICE_CLASS_VIRTIO_NET,
}
_PORT_PROTOCOLS: Final[Mapping[int, PortProtocol]] = {
    port_pb2.PortProtocol.Value(f"PORT_PROTOCOL_{each.name}"): each for each in PortProtocol
}
_PORT_STATES: Final[Mapping[int, PortState]] = {
    port_pb2.PortState.Value(f"PORT_STATE_{each.name}"): each for each in PortState
}
TIMEOUT_LIMIT_S: Final = 3600
"""Longest timeout that a request may have."""

_NANOS: Final = 1_000_000_000
_STATE_PREFIX: Final = "DEVICE_STATE_"


def pool_to_proto(pool: SwiotlbPool) -> guest_capabilities_pb2.SwiotlbPool:
    """Write a pool."""
    return guest_capabilities_pb2.SwiotlbPool(base=pool.base, size_bytes=pool.size_bytes)


def capabilities_to_proto(
    capabilities: GuestCapabilities,
) -> guest_capabilities_pb2.GuestCapabilities:
    """Write a guest's capabilities; a field is absent when its value is not known."""
    return guest_capabilities_pb2.GuestCapabilities(
        swiotlb_pool=pool_to_proto(capabilities.pool) if capabilities.pool else None,
        kernel_release=capabilities.kernel_release,
        seccomp_user_notification=capabilities.seccomp_user_notification,
    )


def capabilities_from_proto(
    message: guest_capabilities_pb2.GuestCapabilities,
) -> GuestCapabilities:
    """Read a guest's capabilities.

    Raises:
        InvalidArgumentError: SWIOTLB_HALF_POOL.
    """
    has_seccomp = message.HasField("seccomp_user_notification")
    return GuestCapabilities(
        pool=pool_from_announcement(message.swiotlb_pool.base, message.swiotlb_pool.size_bytes),
        kernel_release=message.kernel_release,
        seccomp_user_notification=message.seccomp_user_notification if has_seccomp else None,
    )


def device_class_to_proto(device_class: str) -> device_pb2.DeviceClass.ValueType:
    """Write a device class, events.FS or events.NET."""
    return _CLASSES[device_class]


def device_class_from_proto(value: int) -> str:
    """Read a device class.

    Raises:
        InvalidArgumentError: DEVICE_CLASS_UNKNOWN, also when unspecified.
    """
    for name, known in _CLASSES.items():
        if known == value:
            return name
    raise InvalidArgumentError(
        "DEVICE_CLASS_UNKNOWN",
        f"device class {value} is not known; the known ones are "
        + ", ".join(f"{name} ({known})" for name, known in _CLASSES.items()),
        device_class=value,
    )


def device_state_to_proto(state: str) -> device_pb2.DeviceState.ValueType:
    """Write a device state by its name in lower case, for instance "needs_reset"."""
    return device_pb2.DeviceState.Value(f"{_STATE_PREFIX}{state.upper()}")


def device_state_from_proto(value: int) -> str:
    """Read a device state: its name in lower case; "unspecified" for an unknown value."""
    if value not in device_pb2.DeviceState.values():
        return "unspecified"
    name = device_pb2.DeviceState.Name(device_pb2.DeviceState.ValueType(value))
    return name.removeprefix(_STATE_PREFIX).lower()


def link_state_to_proto(is_up: bool | None) -> device_pb2.LinkState.ValueType:
    """Write whether an adapter has its link; None: the device is no adapter."""
    if is_up is None:
        return device_pb2.LINK_STATE_UNSPECIFIED
    return device_pb2.LINK_STATE_UP if is_up else device_pb2.LINK_STATE_DOWN


def link_state_from_proto(value: int) -> bool | None:
    """Read whether an adapter has its link; None: it is no adapter, or that is not known."""
    if value not in (device_pb2.LINK_STATE_UP, device_pb2.LINK_STATE_DOWN):
        return None
    return value == device_pb2.LINK_STATE_UP


def timeout_from_proto(message: Duration) -> float:
    """Convert a timeout to seconds; an absent one is 0.

    Raises:
        InvalidArgumentError: TIMEOUT_RANGE.
    """
    seconds = message.seconds + message.nanos / _NANOS
    if not 0 <= seconds <= TIMEOUT_LIMIT_S:
        raise InvalidArgumentError(
            "TIMEOUT_RANGE",
            f"a timeout of {seconds:g} s; it must be 0 to {TIMEOUT_LIMIT_S} s",
            limit=TIMEOUT_LIMIT_S,
        )
    return seconds


def duration_to_proto(seconds: float) -> Duration:
    """Convert seconds to a Duration, rounded to nanoseconds."""
    message = Duration()
    message.FromNanoseconds(round(seconds * _NANOS))
    return message


def exhaustion_to_proto(exhaustion: Exhaustion) -> device_pb2.Exhaustion:
    """Write an exhaustion."""
    return device_pb2.Exhaustion(
        resource=exhaustion.resource, used=exhaustion.used, total=exhaustion.total
    )


def exhaustion_from_proto(message: device_pb2.Exhaustion) -> Exhaustion:
    """Read an exhaustion."""
    return Exhaustion(message.resource, message.used, message.total)


def port_key_from_proto(message: port_pb2.PortKey) -> PortKey:
    """Convert the key of a mapping; the device host judges it."""
    protocol = _PORT_PROTOCOLS.get(message.protocol, PortProtocol.UNSPECIFIED)
    return PortKey(protocol, message.listen_address, message.listen_port)


def port_key_to_proto(key: PortKey) -> port_pb2.PortKey:
    """Convert the key of a mapping."""
    return port_pb2.PortKey(
        protocol=port_pb2.PortProtocol.Value(f"PORT_PROTOCOL_{key.protocol.name}"),
        listen_address=key.address,
        listen_port=key.port,
    )


def mapping_from_proto(message: port_pb2.PortMapping) -> PortMapping:
    """Convert a mapping; the device host judges it."""
    return PortMapping(
        key=port_key_from_proto(message.key),
        guest_port=message.guest_port,
        state=_PORT_STATES.get(message.state, PortState.UNSPECIFIED),
        reason=message.reason,
        detail=message.detail,
    )


def mapping_to_proto(mapping: PortMapping) -> port_pb2.PortMapping:
    """Convert a mapping."""
    return port_pb2.PortMapping(
        key=port_key_to_proto(mapping.key),
        guest_port=mapping.guest_port,
        state=port_pb2.PortState.Value(f"PORT_STATE_{mapping.state.name}"),
        reason=mapping.reason,
        detail=mapping.detail,
    )


class _WithRateLimits(Protocol):
    """A message with the limits of an adapter."""

    @property
    def transmit(self) -> rate_limit_pb2.RateLimit:
        """Of frames that the guest sends."""

    @property
    def receive(self) -> rate_limit_pb2.RateLimit:
        """Of frames that the guest gets."""

    def HasField(self, field_name: Literal["transmit", "receive"]) -> bool:  # noqa: N802
        """Return whether one of them is there."""


def rate_limits_from_proto(message: _WithRateLimits) -> RateLimits:
    """Read the limits of an adapter from a request or an answer.

    Raises:
        InvalidArgumentError: RATE_LIMIT_VALUE.
    """
    return RateLimits(
        _rate_limit(message.transmit) if message.HasField("transmit") else None,
        _rate_limit(message.receive) if message.HasField("receive") else None,
    )


def rate_limits_to_proto(limits: RateLimits) -> dict[str, rate_limit_pb2.RateLimit]:
    """Write the limits of an adapter: the fields of a request or an answer."""
    named = {"transmit": limits.transmit, "receive": limits.receive}
    return {
        name: rate_limit_pb2.RateLimit(
            bytes_per_second=limit.bps,
            packets_per_second=limit.pps,
            burst_bytes=limit.burst_bytes,
            burst_packets=limit.burst_packets,
        )
        for name, limit in named.items()
        if limit is not None
    }


def _rate_limit(message: rate_limit_pb2.RateLimit) -> RateLimit:
    return checked(
        RateLimit(
            bps=message.bytes_per_second,
            pps=message.packets_per_second,
            burst_bytes=message.burst_bytes,
            burst_packets=message.burst_packets,
        )
    )

"""The metrics of the device host: every counter of every device, and the windows of every VM.

Each export reads the values, so the data path pays nothing for it. Must not know what a counter
means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import Observation

from services.devicehost.accounting import COUNTERS
from services.handshake import events
from services.handshake.pool import SLOT_BYTES
from services.rpc import metrics, tracing
from services.rpc.metrics import Kind, Metric
from services.rpc.providers import metrics_interval_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.devicehost.host import DeviceHost, DeviceInfo

REMOVED_FOR_EXPORTS: Final = 2
"""Exports in whose time a removed device is still observed, so that they have its last counters."""

_BY_RESOURCE: Final = "exhaustions"
"""The one counter that is exported per resource."""


_DEVICE: Final = (events.VM_ID, events.DEVICE_ID, events.DEVICE_CLASS, events.DEVICE_TAG)

_OF_COUNTERS: Final = {
    name: Metric(
        f"porthole.device.{name}",
        Kind.GAUGE if meaning.is_highest else Kind.COUNTER,
        meaning.unit,
        meaning.description,
        (*_DEVICE, events.RESOURCE) if name == _BY_RESOURCE else _DEVICE,
    )
    for name, meaning in COUNTERS.items()
}
_OF_BOUNDS: Final = {
    name: Metric(
        f"porthole.device.bound_{name}",
        Kind.GAUGE,
        "{item}",
        f"windows, handles and so on of a device: {what}",
        (*_DEVICE, events.RESOURCE),
    )
    for name, what in (("used", "amount in use"), ("total", "most that may be in use"))
}
_OF_QUOTAS: Final = tuple(
    Metric(
        f"porthole.vm.windows_{name}",
        Kind.GAUGE,
        "{window}",
        f"windows of the VM's quota: {name}",
        (events.VM_ID,),
    )
    for name in ("used", "limit")
)
POOL_SLOTS: Final = Metric(
    "porthole.device.pool_slots",
    Kind.GAUGE,
    "{slot}",
    "2 KiB slots of the device's pool; 0 without a pool",
    _DEVICE,
)
GUEST_DESCRIPTORS: Final = Metric(
    "porthole.device.guest_descriptors",
    Kind.GAUGE,
    "{descriptor}",
    "descriptors of guest memory that the device holds; 0 when it is confined to its pool and its "
    "rings are placed",
    _DEVICE,
)
METRICS: Final = (
    *_OF_COUNTERS.values(),
    POOL_SLOTS,
    GUEST_DESCRIPTORS,
    *_OF_BOUNDS.values(),
    *_OF_QUOTAS,
)


def observe(host: DeviceHost) -> None:
    """Register the instruments; once per process, after `tracing.setup`."""
    meter = tracing.meter()
    for name, metric in _OF_COUNTERS.items():
        read = _of_bounds if name == _BY_RESOURCE else _of_devices
        metrics.observe(meter, metric, read(host, name))
    for name, metric in _OF_BOUNDS.items():
        metrics.observe(meter, metric, _of_bounds(host, name))
    for place, metric in enumerate(_OF_QUOTAS):
        metrics.observe(meter, metric, _of_quotas(host, place))
    metrics.observe(meter, POOL_SLOTS, lambda: _pool_slots(host))
    metrics.observe(meter, GUEST_DESCRIPTORS, lambda: _guest_descriptors(host))


def _of_devices(host: DeviceHost, name: str) -> Callable[[], Iterable[Observation]]:
    def read() -> Iterable[Observation]:
        return [
            Observation(getattr(device.counters, name), _names(device)) for device in _devices(host)
        ]

    return read


def _devices(host: DeviceHost) -> list[DeviceInfo]:
    # Removed devices come first: of two observations with the same id, the last one counts.
    return [*host.removed_devices(REMOVED_FOR_EXPORTS * metrics_interval_s()), *host.list_devices()]


def _of_bounds(host: DeviceHost, name: str) -> Callable[[], Iterable[Observation]]:
    def read() -> Iterable[Observation]:
        return [
            Observation(getattr(usage, name), {**_names(device), events.RESOURCE: usage.resource})
            for device in _devices(host)
            for usage in device.bounds
        ]

    return read


def _of_quotas(host: DeviceHost, place: int) -> Callable[[], Iterable[Observation]]:
    def read() -> Iterable[Observation]:
        return [
            Observation(quota[place], {events.VM_ID: vm_id})
            for vm_id, quota in host.window_quotas().items()
        ]

    return read


def _pool_slots(host: DeviceHost) -> Iterable[Observation]:
    return [
        Observation(device.pool.size_bytes // SLOT_BYTES if device.pool else 0, _names(device))
        for device in _devices(host)
    ]


def _guest_descriptors(host: DeviceHost) -> Iterable[Observation]:
    return [Observation(device.guest_descriptors, _names(device)) for device in _devices(host)]


def _names(device: DeviceInfo) -> dict[str, str]:
    return {
        events.VM_ID: device.vm_id,
        events.DEVICE_ID: device.instance_id,
        events.DEVICE_CLASS: device.device_class,
        events.DEVICE_TAG: device.tag,
    }

"""The metrics of the device host: every counter of every device, and the windows of every VM.

Each export reads the values, so the data path pays nothing for it. Must not know what a counter
means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import CallbackOptions, Observation

from services.devicehost.accounting import COUNTERS
from services.handshake import events
from services.handshake.pool import SLOT_BYTES
from services.rpc import tracing
from services.rpc.providers import metrics_interval_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.devicehost.host import DeviceHost, DeviceInfo

REMOVED_FOR_EXPORTS: Final = 2
"""Exports in whose time a removed device is still observed, so that they have its last counters."""

_BY_RESOURCE: Final = "exhaustions"
"""The one counter that is exported per resource."""


def observe(host: DeviceHost) -> None:
    """Register the instruments; once per process, after `tracing.setup`."""
    meter = tracing.meter()
    for name, meaning in COUNTERS.items():
        create = (
            meter.create_observable_gauge if meaning.is_highest else meter.create_observable_counter
        )
        read = _of_bounds if name == _BY_RESOURCE else _of_devices
        create(
            f"porthole.device.{name}",
            callbacks=[read(host, name)],
            unit=meaning.unit,
            description=meaning.description,
        )
    meter.create_observable_gauge(
        "porthole.device.pool_slots",
        callbacks=[lambda _: _pool_slots(host)],
        unit="{slot}",
        description="2 KiB slots of the device's pool; 0 without a pool",
    )
    meter.create_observable_gauge(
        "porthole.device.guest_descriptors",
        callbacks=[lambda _: _guest_descriptors(host)],
        unit="{descriptor}",
        description="descriptors of guest memory that the device holds; 0 when it is confined to "
        "its pool and its rings are placed",
    )
    for name, what in (("used", "amount in use"), ("total", "most that may be in use")):
        meter.create_observable_gauge(
            f"porthole.device.bound_{name}",
            callbacks=[_of_bounds(host, name)],
            unit="1",
            description=f"windows, handles and so on of a device: {what}",
        )
    for place, name in enumerate(("used", "limit")):
        meter.create_observable_gauge(
            f"porthole.vm.windows_{name}",
            callbacks=[_of_quotas(host, place)],
            unit="{window}",
            description=f"windows of the VM's quota: {name}",
        )


def _of_devices(host: DeviceHost, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(getattr(device.counters, name), _names(device)) for device in _devices(host)
        ]

    return read


def _devices(host: DeviceHost) -> list[DeviceInfo]:
    # Removed devices come first: of two observations with the same id, the last one counts.
    return [*host.removed_devices(REMOVED_FOR_EXPORTS * metrics_interval_s()), *host.list_devices()]


def _of_bounds(host: DeviceHost, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(getattr(usage, name), {**_names(device), events.RESOURCE: usage.resource})
            for device in _devices(host)
            for usage in device.bounds
        ]

    return read


def _of_quotas(host: DeviceHost, place: int) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
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

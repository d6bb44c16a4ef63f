"""The metrics of the guest's bounce pool: its usage, and how often it was used up.

Values are read when metrics are exported, so they cost the drivers nothing. Must not know pools
beyond their usage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import CallbackOptions, Observation

from services.handshake import events
from services.rpc import tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.handshake.pool import SwiotlbPool
    from services.simguest.guest import Guest

_GAUGES: Final = {
    "slots_total": "2 KiB slots of the bounce pool",
    "slots_used": "2 KiB slots of the bounce pool that are mapped",
    "slots_used_high_water": "the most slots of the bounce pool that were ever mapped",
}


def observe(guest: Guest) -> None:
    """Register the instruments; once per process, after `tracing.setup`."""
    meter = tracing.meter()
    for name, description in _GAUGES.items():
        meter.create_observable_gauge(
            f"porthole.pool.{name}",
            callbacks=[_of_pool(guest, name)],
            unit="{slot}",
            description=description,
        )
    meter.create_observable_counter(
        "porthole.device.exhaustions",
        callbacks=[lambda _: _exhaustions(guest)],
        unit="{episode}",
        description="episodes in which requests of a device had to wait for slots of the pool",
    )


def _of_pool(guest: Guest, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        in_use = guest.pool_usage()
        if in_use is None:
            return []
        pool, usage = in_use
        return [Observation(getattr(usage, name), _names(guest, pool))]

    return read


def _exhaustions(guest: Guest) -> Iterable[Observation]:
    return [
        Observation(
            count,
            {events.VM_ID: guest.vm_id, events.DEVICE_ID: device_id, events.RESOURCE: resource},
        )
        for (device_id, resource), count in guest.reports.counts().items()
    ]


def _names(guest: Guest, pool: SwiotlbPool) -> dict[str, str | int]:
    return {events.VM_ID: guest.vm_id, events.POOL_BASE: pool.base}

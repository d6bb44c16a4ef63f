"""The metrics of the guest's bounce pool: its usage, and how often it was used up.

Values are read when metrics are exported, so they cost the drivers nothing. Must not know pools
beyond their usage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import Observation

from services.handshake import events
from services.rpc import metrics, tracing
from services.rpc.metrics import Kind, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.handshake.pool import SwiotlbPool
    from services.simguest.guest import Guest

_USAGE: Final = {
    name: Metric(
        f"porthole.pool.{name}",
        Kind.GAUGE,
        "{slot}",
        description,
        (events.VM_ID, events.POOL_BASE),
    )
    for name, description in (
        ("slots_total", "2 KiB slots of the bounce pool"),
        ("slots_used", "2 KiB slots of the bounce pool that are mapped"),
        ("slots_used_high_water", "the most slots of the bounce pool that were ever mapped"),
    )
}
"""What is observed of the pool, by the member of its usage."""

EXHAUSTIONS: Final = Metric(
    "porthole.device.exhaustions",
    Kind.COUNTER,
    "{episode}",
    "episodes in which requests of a device had to wait for slots of the pool",
    (events.VM_ID, events.DEVICE_ID, events.RESOURCE),
)
METRICS: Final = (*_USAGE.values(), EXHAUSTIONS)


def observe(guest: Guest) -> None:
    """Register the instruments; once per process, after `tracing.setup`."""
    meter = tracing.meter()
    for name, metric in _USAGE.items():
        metrics.observe(meter, metric, _of_pool(guest, name))
    metrics.observe(meter, EXHAUSTIONS, lambda: _exhaustions(guest))


def _of_pool(guest: Guest, name: str) -> Callable[[], Iterable[Observation]]:
    def read() -> Iterable[Observation]:
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

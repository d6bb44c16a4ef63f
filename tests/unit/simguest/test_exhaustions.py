"""Reports of exhaustion: to watchers, from any thread, and as metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.handshake.exhaustion import Exhaustion
from services.rpc import tracing
from services.simguest import telemetry
from services.simguest.exhaustions import BACKLOG, Exhaustions
from services.simguest.guest import BootSpec, Guest, GuestPlace
from services.simguest.kernel import Kernel

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FULL = Exhaustion("bounce_pool", 1000, 1024)


async def test_every_watcher_gets_reports_from_any_thread_until_the_end() -> None:
    exhaustions = Exhaustions()

    async def watch() -> list[tuple[str, Exhaustion]]:
        return [report async for report in exhaustions.watch()]

    watchers = [asyncio.create_task(watch()) for _ in range(2)]
    await asyncio.sleep(0)  # both have begun
    await asyncio.to_thread(exhaustions.report, "d1", FULL)
    exhaustions.end()
    assert await asyncio.wait_for(asyncio.gather(*watchers), 10) == [[("d1", FULL)]] * 2
    exhaustions.report("d2", FULL)  # after the end of every watch
    assert exhaustions.counts() == {("d1", "bounce_pool"): 1, ("d2", "bounce_pool"): 1}


async def test_a_watcher_that_does_not_read_takes_bounded_memory() -> None:
    exhaustions = Exhaustions()
    watching = exhaustions.watch()
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    for number in range(3 * BACKLOG):
        exhaustions.report(str(number), FULL)
    assert await first == ("0", FULL)
    rest = [await asyncio.wait_for(anext(watching), 10) for _ in range(BACKLOG - 1)]
    assert rest[-1] == (str(BACKLOG - 1), FULL)
    await watching.aclose()


async def test_metrics_show_pool_and_devices(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(tracing, "meter", lambda: provider.get_meter("test"))
    guest = Guest(GuestPlace(run_dir, rings_in_pool=False))
    telemetry.observe(guest)
    await guest.boot(
        BootSpec(128 << 20, "swiotlb=force hv_pci_swiotlb=8M", Kernel("6.18.26.3", True), "", "v1")
    )
    guest.exhaustions.report("d1", FULL)
    data = reader.get_metrics_data()
    assert data is not None
    points: dict[str, Any] = {
        metric.name: next(iter(metric.data.data_points))
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert points["porthole.pool.slots_total"].value == 4096
    assert points["porthole.pool.slots_total"].attributes["porthole.vm.id"] == "v1"
    assert points["porthole.pool.slots_used"].value == 0
    exhaustions = points["porthole.device.exhaustions"]
    assert exhaustions.value == 1
    assert exhaustions.attributes == {
        "porthole.vm.id": "v1",
        "porthole.device.id": "d1",
        "porthole.resource": "bounce_pool",
    }
    await guest.power_off()
    provider.shutdown()

"""Reports of a guest: to watchers, from any thread, and as metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.handshake.exhaustion import Exhaustion
from services.rpc import tracing
from services.simguest import telemetry
from services.simguest.guest import BootSpec, Guest, GuestPlace
from services.simguest.kernel import Kernel
from services.simguest.reports import BACKLOG, GuestReports, InitEnd, KernelExhaustion

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from services.simguest.reports import Report

FULL = Exhaustion("bounce_pool", 1000, 1024)


async def test_every_watcher_gets_reports_from_any_thread_until_the_end() -> None:
    reports = GuestReports()

    async def watch() -> list[Report]:
        return [report async for report in reports.watch()]

    watchers = [asyncio.create_task(watch()) for _ in range(2)]
    await asyncio.sleep(0)  # both have begun
    await asyncio.to_thread(reports.exhausted, "d1", FULL)
    reports.end()
    assert (
        await asyncio.wait_for(asyncio.gather(*watchers), 10)
        == [[KernelExhaustion("d1", FULL)]] * 2
    )
    reports.exhausted("d2", FULL)  # after the end of every watch
    assert reports.counts() == {("d1", "bounce_pool"): 1, ("d2", "bounce_pool"): 1}


async def test_a_watcher_that_does_not_read_takes_bounded_memory() -> None:
    reports = GuestReports()
    watching = reports.watch()
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    for number in range(3 * BACKLOG):
        reports.exhausted(str(number), FULL)
    assert await first == KernelExhaustion("0", FULL)
    rest = [await asyncio.wait_for(anext(watching), 10) for _ in range(BACKLOG - 1)]
    assert rest[-1] == KernelExhaustion(str(BACKLOG - 1), FULL)
    await watching.aclose()


async def test_the_end_of_guest_init_reaches_everybody_once() -> None:
    """Also a watcher that comes later, and one that has stopped reading."""
    reports = GuestReports()
    slow = reports.watch()
    first = asyncio.ensure_future(anext(slow))
    await asyncio.sleep(0)
    for number in range(2 * BACKLOG):
        reports.exhausted(str(number), FULL)
    await first
    reports.init_ended("signal SIGKILL")
    reports.end()
    assert InitEnd("signal SIGKILL") in [report async for report in slow]
    late = reports.watch()
    assert await anext(late) == InitEnd("signal SIGKILL")
    await late.aclose()


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
    guest.reports.exhausted("d1", FULL)
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
    await guest.init_ended()
    provider.shutdown()

"""What services export of a real handshake is what docs/metrics.md says."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from porthole.vmowner.v1 import vm_owner_pb2

from docs.document_metrics import SECTIONS
from tests.support.house import House
from tests.support.prometheus_names import kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.rpc.metrics import Metric

OF_ALL = "Every service"
OWN = {"owner": "VM owner", "devicehost": "Device host", "simguest": "User-space guest"}


def exported(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """All metrics of a file, with the service that exports them."""
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceMetrics"]:
            [service] = [
                pair["value"]["stringValue"]
                for pair in resource["resource"]["attributes"]
                if pair["key"] == "service.name"
            ]
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    yield service, metric


def documented(service: str) -> dict[str, Metric]:
    titles = [OF_ALL, *([OWN[service]] if service in OWN else [])]
    return {metric.name: metric for title in titles for metric in SECTIONS[title][1]}


async def test_metrics_are_as_documented(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    async with AsyncExitStack() as stack:
        settings = {"PORTHOLE_METRICS_FILE": str(path), "OTEL_METRIC_EXPORT_INTERVAL": "100"}
        house = House(run_dir, settings)
        await house.start(stack)
        await house.create(vm_owner_pb2.VM_KIND_WSL2, fixed=True)
        # A guest has no pool any more when it ends, so one export has to come before.
        async with asyncio.timeout(60):
            while "porthole.pool.slots_total" not in path.read_text():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
    seen: dict[str, set[str]] = {}
    for service, metric in exported(path):
        definition = documented(service)[metric["name"]]
        assert (kind_of(metric), metric["unit"]) == (definition.kind, definition.unit)
        assert metric["description"] == definition.description
        [data] = [metric[form] for form in ("sum", "gauge", "histogram") if form in metric]
        for point in data["dataPoints"]:
            names = {pair["key"] for pair in point.get("attributes", ())}
            assert names - set(definition.attributes) == set(), metric["name"]
        seen.setdefault(service, set()).add(metric["name"])
    assert seen.keys() >= {"owner", "devicehost", "simguest", "guest-init"}
    assert seen["owner"] >= {"porthole.handshake.duration", "porthole.vm.count"}
    assert "porthole.device.requests" in seen["devicehost"]
    assert "porthole.pool.slots_total" in seen["simguest"]
    for service in ("owner", "devicehost", "simguest"):
        assert "rpc.server.call.duration" in seen[service], service
    # The init of a WSL2 guest reports, and is asked nothing.
    assert "rpc.client.call.duration" in seen["guest-init"]

"""Prometheus scrapes what a handshake exports; the dashboards' queries and the alerts run there."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from porthole.vmowner.v1 import vm_owner_pb2

from tests.support import prometheus, prometheus_names
from tests.support.house import House
from tests.support.http_server import Answer, serving
from tests.support.telemetry_profile import TELEMETRY, alerts, queries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.prometheus

DEADLINE_S = 30.0
LOST = re.compile(r"^porthole_telemetry_\w+\{.*\} [1-9]", re.MULTILINE)
# What a valid handshake of a VM with a pool does not have.
NOT_EXPORTED = {"porthole_handshake_breaches_total"}


async def metrics_of_a_handshake(run_dir: Path) -> str:
    """Run a VM with a share, whose telemetry reaches a file but no collector; return the page."""
    metrics_file = run_dir / "metrics.jsonl"
    settings = {
        "PORTHOLE_METRICS_FILE": str(metrics_file),
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        "PORTHOLE_OTLP_ENDPOINT": f"unix:{run_dir / 'nobody.sock'}",
    }
    house = House(run_dir, settings)
    async with AsyncExitStack() as stack:
        await house.start(stack)
        vm = await house.create(vm_owner_pb2.VM_KIND_WSL2)
        await house.add_share(vm.vm_id, "src")
        assert await house.guest_reads(vm, "src")
        wanted = {name for query in queries() for name in names(query.expression)} - NOT_EXPORTED
        page = ""
        async with asyncio.timeout(DEADLINE_S):
            while wanted - scraped_names(page) or not LOST.search(page):
                await asyncio.sleep(0.2)
                page = prometheus_names.page(
                    json.loads(line) for line in metrics_file.read_text().splitlines()
                )
    return page


def names(expression: str) -> set[str]:
    return prometheus_names.metric_names(expression)


def scraped_names(page: str) -> set[str]:
    return {line.partition("{")[0] for line in page.splitlines()}


async def test_every_query_and_every_alert_runs_on_what_a_handshake_exports(
    run_dir: Path, tmp_path: Path
) -> None:
    page = await metrics_of_a_handshake(run_dir)
    assert not scraped_names(page) & NOT_EXPORTED
    await asyncio.to_thread(check_in_prometheus, page, tmp_path)


def check_in_prometheus(page: str, directory: Path) -> None:
    with (
        serving({"/metrics": Answer(page.encode())}) as server,
        prometheus.running(directory, server.url.removeprefix("http://")) as running,
    ):
        running.wait_for_scrapes(3)
        for query in queries():
            found = running.query(query.expression)
            if not names(query.expression) & NOT_EXPORTED:
                assert found, query
        # The label of the service that sent it, not that of the job.
        [owner] = running.query('count by (job) (porthole_vm_count{job="porthole/owner"})')
        assert owner["value"][1] != "0"
        for expression in alerts().values():
            running.query(expression)
        # Nobody took the spans.
        rules = running.rules_when("PortholeTelemetryDropped")
        assert {name: rule.get("lastError", "") for name, rule in rules.items()} == dict.fromkeys(
            alerts(), ""
        )
        active = {name for name, rule in rules.items() if rule["state"] != "inactive"}
        assert active == {"PortholeTelemetryDropped"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing(arguments: list[str]) -> None:
    result = subprocess.run(
        ["promtool", *arguments], cwd=TELEMETRY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr

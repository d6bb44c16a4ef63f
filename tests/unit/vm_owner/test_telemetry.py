"""The metrics of the owner: VMs by state and kind."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from services.rpc import tracing
from services.rpc.settings import ServiceSettings
from services.vm_owner import telemetry
from services.vm_owner.record import VmKind
from services.vm_owner.states import VmState

if TYPE_CHECKING:
    from pathlib import Path


def vm(state: VmState, kind: VmKind) -> Any:
    return SimpleNamespace(record=SimpleNamespace(state=state, facts=SimpleNamespace(kind=kind)))


def test_vms_are_counted_by_state_and_kind(run_dir: Path) -> None:
    path = run_dir / "metrics.jsonl"
    tracing.setup("owner", ServiceSettings(run_dir=run_dir, metrics_file=path))
    listed = [
        vm(VmState.RUNNING, VmKind.WSL2),
        vm(VmState.RUNNING, VmKind.WSL2),
        vm(VmState.BOOTED, VmKind.WSLC),
        vm(VmState.TERMINATED, VmKind.WSLC),
    ]
    telemetry.observe(lambda: listed)
    tracing.shutdown()
    last = json.loads(path.read_text().splitlines()[-1])
    [metric] = last["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert (metric["name"], metric["unit"]) == ("porthole.vm.count", "{vm}")
    counted = {}
    for point in metric["sum"]["dataPoints"]:
        named = {item["key"]: item["value"]["stringValue"] for item in point["attributes"]}
        key = named["porthole.vm.state"], named["porthole.vm.kind"]
        counted[key] = int(point.get("asInt", 0))
    assert len(counted) == 8
    assert {key: number for key, number in counted.items() if number} == {
        ("RUNNING", "WSL2"): 2,
        ("BOOTED", "WSLC"): 1,
    }

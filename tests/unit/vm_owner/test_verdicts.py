"""The verdict of the owner in traces and metrics: what dashboards and alerts are made of."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from services.handshake import events
from services.handshake.errors import UnavailableError
from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc import tracing
from services.rpc.settings import ServiceSettings
from services.vm_owner.record import VmKind
from services.vm_owner.shares import ShareSpec
from services.vm_owner.verdicts import trace_verdict
from tests.support.reports import reported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.owner_peers import Rig

GOOD = reported(0x3C00_0000, 64 << 20, "6.18.26.3-microsoft", True)


@pytest.fixture
def files(run_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Files of the traces and metrics of this process."""
    paths = run_dir / "trace.jsonl", run_dir / "metrics.jsonl"
    tracing.setup(
        "owner", ServiceSettings(run_dir=run_dir, trace_file=paths[0], metrics_file=paths[1])
    )
    yield paths
    tracing.shutdown()


def attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in holder["attributes"]}


def test_a_verdict_is_a_span_that_backends_find_and_an_event_that_the_checker_reads(
    files: tuple[Path, Path],
) -> None:
    verdict = events.handshake_verdict("vm", events.ENDED, ["DEVICE_LEFT", "TOKEN_MISSING"])
    with tracing.operation("TerminateVm"):
        trace_verdict(VmKind.WSL2, time.monotonic(), verdict)
    lines = files[0].read_text().splitlines()
    span, parent = (
        json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines
    )
    assert (span["name"], span["parentSpanId"]) == ("HandshakeVerdict", parent["spanId"])
    assert attributes(span) == verdict.attributes
    assert [event["name"] for event in span["events"]] == ["HandshakeVerdict"]
    assert attributes(span["events"][0]) == verdict.attributes
    assert span["status"] == {"code": 2, "message": "broken: DEVICE_LEFT TOKEN_MISSING"}


def test_a_valid_handshake_is_no_error(files: tuple[Path, Path]) -> None:
    trace_verdict(VmKind.WSLC, 0.0, events.handshake_verdict("vm", events.RUNNING, ()))
    [line] = files[0].read_text().splitlines()
    [span] = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert "code" not in span.get("status", {})


def test_verdicts_and_breaches_are_counted(files: tuple[Path, Path]) -> None:
    for broken in ((), (), ("DEVICE_LEFT", "TOKEN_MISSING"), None):
        trace_verdict(VmKind.WSL2, 0.0, events.handshake_verdict("vm", events.ENDED, broken))
    tracing.shutdown()
    last = files[1].read_text().splitlines()[-1]
    counted = {}
    for metric in json.loads(last)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
        for point in metric["sum"]["dataPoints"]:
            seen = attributes(point)
            assert (seen.pop("porthole.handshake.stage"), seen.pop("porthole.vm.kind")) == (
                "ended",
                "WSL2",
            )
            counted[metric["name"], *seen.values()] = int(point["asInt"])
    assert counted == {
        ("porthole.handshake.verdicts", "valid"): 2,
        ("porthole.handshake.verdicts", "broken"): 1,
        ("porthole.handshake.verdicts", "unknown"): 1,
        ("porthole.handshake.breaches", "DEVICE_LEFT"): 1,
        ("porthole.handshake.breaches", "TOKEN_MISSING"): 1,
    }


def test_the_time_until_a_vm_runs_is_measured_once(files: tuple[Path, Path]) -> None:
    began_s = time.monotonic() - 20
    for stage in (events.RUNNING, events.ENDED):
        trace_verdict(VmKind.WSLC, began_s, events.handshake_verdict("vm", stage, ()))
    tracing.shutdown()
    last = files[1].read_text().splitlines()[-1]
    metrics = json.loads(last)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    [duration] = [each for each in metrics if each["name"] == "porthole.handshake.duration"]
    assert duration["unit"] == "s"
    [point] = duration["histogram"]["dataPoints"]
    assert attributes(point) == {
        "porthole.vm.kind": "WSLC",
        "porthole.handshake.verdict": "valid",
    }
    assert int(point["count"]) == 1
    assert 20 <= point["sum"] < 20 + 60


@pytest.mark.parametrize("kind", VmKind)
async def test_the_verdicts_of_an_owner_are_those_that_its_trace_shows(
    rig: Rig, files: tuple[Path, Path], kind: VmKind
) -> None:
    vm = await rig.owner.create(rig.vm_spec(kind))
    if kind is VmKind.WSLC:
        await rig.owner.apply_capabilities(vm.vm_id, GOOD)
    await rig.owner.add_share(vm.vm_id, ShareSpec(str(rig.run_dir), "data"))
    await rig.owner.terminate(vm.vm_id)
    recording = parse_otlp_lines(files[0].read_text(), "trace.jsonl")
    of_owner = sorted(
        (event for event in recording.events if event.vm_id == vm.vm_id),
        key=lambda event: event.time_unix_nano,
    )
    judged = [event for event in of_owner if event.name == events.HANDSHAKE_VERDICT]
    assert [event.text(events.STAGE) for event in judged] == [events.RUNNING, events.ENDED]
    assert [event.name for event in of_owner][-2:] == ["HandshakeVerdict", "VmTerminated"]
    [verdict] = verify(recording)
    rules = {violation.rule for violation in verdict.violations}
    assert rules.isdisjoint({"VERDICT_MISMATCH", "VERDICT_MISCOUNTED", "SPAN_STRAY"}), rules
    for event in judged:
        assert set(event.text(events.BROKEN_RULES).split()) <= rules


async def test_a_vm_that_never_boots_has_no_verdict(rig: Rig, files: tuple[Path, Path]) -> None:
    rig.script.failures["Boot"] = UnavailableError("BOOM", "the machine does not boot")
    with pytest.raises(UnavailableError):
        await rig.owner.create(rig.vm_spec(VmKind.WSL2))
    names = [event.name for event in parse_otlp_lines(files[0].read_text(), "f").events]
    assert sorted(names) == ["VmCreated", "VmTerminated"]

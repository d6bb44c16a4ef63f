from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from porthole.testing.collector import Collector
from porthole.testing.spans import from_message
from porthole.testing.traces import Traces

from services.handshake import events
from tests.support.handshake_traces import TRACE, VM, change, record, without, wsl2
from tests.support.trace_formats import to_messages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    from tests.support.handshake_traces import Steps

COMMAND = (sys.executable, "-m", "services.cli.main")
OTHER = VM[::-1]
BROKEN = change(wsl2(), events.APERTURE_CREATED, {events.POOL_BASE: 0x1000})


def arrive(collector: Collector, resource_spans: Sequence[ResourceSpans]) -> None:
    collector.add(from_message(ExportTraceServiceRequest(resource_spans=resource_spans)))


def spans_of(steps: Steps) -> list[ResourceSpans]:
    """The spans of each service."""
    return list(to_messages(record(steps)).resource_spans)


def of_other_vm(steps: Steps) -> list[ResourceSpans]:
    found = []
    for each in spans_of(steps):
        text = each.SerializeToString().replace(VM.encode(), OTHER.encode())
        changed = text.replace(bytes.fromhex(TRACE), bytes.fromhex(TRACE)[::-1])
        found.append(type(each).FromString(changed))
    return found


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def traces(collector: Collector, tmp_path: Path) -> Traces:
    return Traces(collector, COMMAND, tmp_path / "spans.jsonl")


def failure(traces: Traces, *vm_ids: str, wait_s: float = 0, settle_s: float = 0) -> str:
    with pytest.raises(AssertionError) as caught:
        traces.assert_valid(*vm_ids, wait_s=wait_s, settle_s=settle_s)
    return str(caught.value)


def test_a_valid_handshake_passes(collector: Collector, traces: Traces) -> None:
    arrive(collector, spans_of(wsl2()))
    traces.assert_valid(wait_s=0)
    traces.assert_valid(VM, wait_s=0)
    assert traces.vm_ids == [VM]


def test_broken_rules_are_listed_with_the_file(collector: Collector, traces: Traces) -> None:
    arrive(collector, spans_of(BROKEN))
    arrive(collector, of_other_vm(wsl2()))
    said = failure(traces, VM)
    first, *_, last = said.splitlines()
    assert first == "1 VM, and its handshake is not valid:"
    assert f"  {VM}: APERTURE_MISMATCH: " in said
    assert last == f"The spans are in {traces.file}."
    result = subprocess.run(
        [*COMMAND, "handshake", "verify", traces.file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "APERTURE_MISMATCH" in result.stdout
    assert failure(traces).startswith("2 VMs, and not all handshakes are valid:")
    traces.assert_valid(OTHER, wait_s=0)


def test_tags_may_be_idle(collector: Collector, traces: Traces) -> None:
    unused = (events.FIRST_REQUEST, events.DEVICE_REMOVED)
    arrive(collector, spans_of(without(wsl2(), *unused, tag="src")))
    assert "FIRST_REQUEST_MISSING" in failure(traces)
    assert "FIRST_REQUEST_MISSING" not in failure_of_idle(traces)


def failure_of_idle(traces: Traces) -> str:
    with pytest.raises(AssertionError) as caught:
        traces.assert_valid(idle=["src"], wait_s=0, settle_s=0)
    return str(caught.value)


def test_it_waits_for_the_end_and_for_late_spans(collector: Collector, traces: Traces) -> None:
    *early, late = spans_of(wsl2())
    assert "owner" in str(early)
    began = time.monotonic()

    def send() -> None:
        arrive(collector, early)
        time.sleep(0.5)
        arrive(collector, [late])

    sender = threading.Timer(0.2, send)
    sender.start()
    traces.assert_valid()
    assert time.monotonic() - began < 20
    sender.join()


def test_no_vm_is_a_failure_that_says_so(collector: Collector, traces: Traces) -> None:
    traces = Traces(collector, COMMAND, traces.file)
    assert failure(traces).startswith("no VM has booted, or no service sends spans to ")
    assert "porthole_traces.environment" in failure(traces)


def test_a_vm_that_has_not_ended_is_named(collector: Collector, traces: Traces) -> None:
    arrive(collector, spans_of(without(wsl2(), events.VM_TERMINATED)))
    assert failure(traces, wait_s=0.05).startswith(f"no span says that VM {VM} has ended")
    assert failure(traces, OTHER).startswith(f"no span says that VM {OTHER} has ended")


def test_vms_of_earlier_tests_do_not_count(collector: Collector, traces: Traces) -> None:
    arrive(collector, spans_of(BROKEN))
    later = Traces(collector, COMMAND, traces.file)
    assert later.vm_ids == []
    assert failure(later).startswith("no VM has booted")
    arrive(collector, of_other_vm(wsl2()))
    later.assert_valid(wait_s=0)
    assert VM not in traces.file.read_text()


def test_spans_that_were_refused_are_a_failure(
    collector: Collector, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("porthole.testing.collector.KEPT_BYTES", 1000)
    arrive(collector, spans_of(wsl2()))
    assert "too many are kept" in failure(traces)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("no-such-porthole",), "'no-such-porthole' was not found"),
        (("/bin/false",), "no verdict.v1: is it of another version"),
        (("/bin/echo", "[]"), "no verdict.v1: is it of another version"),
        (("/bin/sh", "-c", "echo why >&2; exit 2"), "handshake verify failed: why"),
    ],
)
def test_a_judge_that_does_not_work_is_an_error(
    collector: Collector, traces: Traces, command: tuple[str, ...], said: str
) -> None:
    judged = Traces(collector, command, traces.file)
    arrive(collector, spans_of(wsl2()))
    with pytest.raises(RuntimeError, match=said):
        judged.assert_valid(wait_s=0)

"""Exported spans and events, and the continuation of a VM's trace."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from services.handshake.errors import DeadlineExceededError, NotFoundError, PortholeError
from services.handshake.events import Event
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc import interceptor, tracing
from services.rpc.settings import ServiceSettings
from tests.unit.rpc.probe_service import SERVICE, Probe, report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from porthole.guest.v1.guest_init_pb2_grpc import InitChannelAsyncStub

    from services.rpc.channel import Peer


@pytest.fixture
def trace_file(run_dir: Path) -> Iterator[Path]:
    """Set telemetry up; returns the file of its spans."""
    path = run_dir / "new" / "trace.jsonl"
    settings = ServiceSettings(
        run_dir=run_dir, trace_file=path, metrics_file=run_dir / "metrics.jsonl"
    )
    tracing.setup("unit", settings)
    yield path
    tracing.shutdown()


def spans(path: Path) -> dict[str, Any]:
    found = {}
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                found.update({span["name"]: span for span in scope["spans"]})
    return found


CALL = f"{SERVICE}/ReportGuestCapabilities"


def sides(path: Path) -> list[dict[str, Any]]:
    """The spans of the server and the client of a call, as far as they have ended."""
    written = path.read_text() if path.exists() else ""
    requests = [json.loads(line) for line in written.splitlines()]
    listed = [
        span
        for request in requests
        for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]
        if span["name"] == CALL
    ]
    return sorted(listed, key=lambda span: int(span["kind"]))


def attributes(holder: dict[str, Any]) -> dict[str, Any]:
    """Attributes, of whatever type."""
    return {
        item["key"]: next(iter(item["value"].values())) for item in holder.get("attributes", ())
    }


async def both_sides(path: Path, probe: Probe) -> None:
    """Wait until a call that the probe let go has ended on both sides."""
    await probe.let_go.wait()
    for _ in range(10_000):  # its span ends a few turns of the loop later
        if len(sides(path)) == 2:
            return
        await asyncio.sleep(0)


async def ask(peer: Peer[InitChannelAsyncStub], word: str) -> None:
    await peer.stub.ReportGuestCapabilities(report(word))


def test_a_span_is_in_the_file_the_moment_it_ends(trace_file: Path) -> None:
    with tracing.operation("Outer"):
        with tracing.operation("Inner"):
            tracing.emit(Event("Happened", {"text": "t", "number": 7, "truth": True}))
        assert list(spans(trace_file)) == ["Inner"]
    found = spans(trace_file)
    assert list(found) == ["Inner", "Outer"]
    assert found["Inner"]["parentSpanId"] == found["Outer"]["spanId"]
    assert found["Inner"]["traceId"] == found["Outer"]["traceId"]
    assert "parentSpanId" not in found["Outer"]


def test_a_line_is_otlp_json(trace_file: Path) -> None:
    with tracing.operation("Outer"):
        tracing.emit(Event("Happened", {"text": "t", "number": 1 << 40, "truth": True}))
    [line] = trace_file.read_text().splitlines()
    [resource] = json.loads(line)["resourceSpans"]
    names = {item["key"]: item["value"] for item in resource["resource"]["attributes"]}
    assert names["service.name"] == {"stringValue": "unit"}
    [span] = resource["scopeSpans"][0]["spans"]
    assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
    assert int(span["traceId"], 16)
    assert span["kind"] == 1
    [event] = parse_otlp_lines(trace_file.read_text(), "f").events
    assert event.attributes == {"text": "t", "number": 1 << 40, "truth": True}
    assert (event.span.trace_id, event.span.span_id) == (span["traceId"], span["spanId"])


def test_an_operation_continues_the_trace_of_its_vm_and_links_its_caller(
    trace_file: Path,
) -> None:
    with tracing.operation("CreateVm"):
        vm_traceparent = tracing.current_traceparent()
    with tracing.operation("Caller"), tracing.operation("AddShare", vm_traceparent=vm_traceparent):
        assert tracing.current_traceparent().split("-")[1] == vm_traceparent.split("-")[1]
    found = spans(trace_file)
    assert found["AddShare"]["traceId"] == found["CreateVm"]["traceId"]
    assert found["AddShare"]["parentSpanId"] == found["CreateVm"]["spanId"]
    assert found["AddShare"]["traceId"] != found["Caller"]["traceId"]
    [link] = found["AddShare"]["links"]
    assert link["traceId"] == found["Caller"]["traceId"]
    assert link["spanId"] == found["Caller"]["spanId"]


def test_an_operation_without_a_vm_is_its_callers_child(trace_file: Path) -> None:
    with tracing.operation("Caller"), tracing.operation("ListVms", vm_traceparent=""):
        pass
    found = spans(trace_file)
    assert found["ListVms"]["parentSpanId"] == found["Caller"]["spanId"]
    assert "links" not in found["ListVms"]


def test_a_garbled_traceparent_begins_a_trace(trace_file: Path) -> None:
    with tracing.operation("Caller"), tracing.operation("Lost", vm_traceparent="00-xyz"):
        pass
    found = spans(trace_file)
    assert "parentSpanId" not in found["Lost"]
    assert found["Lost"]["traceId"] != found["Caller"]["traceId"]


def test_an_error_marks_the_span(trace_file: Path) -> None:
    with pytest.raises(NotFoundError), tracing.operation("RemoveShare"):
        raise NotFoundError("SHARE_UNKNOWN", "no such share")
    span = spans(trace_file)["RemoveShare"]
    assert span["status"] == {"code": 2, "message": "no such share"}
    assert {"key": "porthole.reason", "value": {"stringValue": "SHARE_UNKNOWN"}} in (
        span["attributes"]
    )


def test_an_event_without_a_span_gets_one(trace_file: Path) -> None:
    tracing.emit(Event("Alone"))
    assert [event.name for event in parse_otlp_lines(trace_file.read_text(), "f").events] == [
        "Alone"
    ]


def test_threads_leave_events_under_the_vm(trace_file: Path) -> None:
    with tracing.operation("CreateVm"):
        vm_traceparent = tracing.current_traceparent()

    def work(number: int) -> None:
        for _ in range(20):
            event = Event("FirstRequestCompleted", {"device": number})
            tracing.emit_under(vm_traceparent, "serve", event)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = parse_otlp_lines(trace_file.read_text(), "f").events
    assert len(found) == 80
    assert {event.span.trace_id for event in found} == {vm_traceparent.split("-")[1]}


async def test_a_call_carries_the_context_to_the_other_side(
    trace_file: Path, probe: Probe, peer: Peer[InitChannelAsyncStub]
) -> None:
    with tracing.operation("Client"):
        mine = tracing.current_traceparent()
        await peer.stub.ReportGuestCapabilities(report("fine"))
    assert probe.traceparent.split("-")[1] == mine.split("-")[1]
    server, client = sides(trace_file)
    assert server["parentSpanId"] == client["spanId"]
    assert client["parentSpanId"] == spans(trace_file)["Client"]["spanId"]
    assert [event["name"] for event in server["events"]] == ["Reported"]
    assert f"{SERVICE}/GetVersion" not in spans(trace_file)


async def test_both_sides_of_a_call_have_the_attributes_of_the_conventions(
    trace_file: Path, run_dir: Path, peer: Peer[InitChannelAsyncStub]
) -> None:
    await peer.stub.ReportGuestCapabilities(report("fine"))
    for side in sides(trace_file):
        assert side["name"] == CALL
        assert attributes(side) == {
            "rpc.system.name": "grpc",
            "rpc.method": CALL,
            "rpc.response.status_code": "OK",
            "server.address": f"{run_dir}/probe.sock",
            "network.transport": "unix",
        }
        assert "status" not in side or "code" not in side["status"]


@pytest.mark.parametrize(
    ("word", "code", "is_servers_fault"),
    [
        ("NOT_FOUND", "NOT_FOUND", False),
        ("FAILED_PRECONDITION", "FAILED_PRECONDITION", False),
        ("UNAVAILABLE", "UNAVAILABLE", True),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True),
        ("crash", "INTERNAL", True),
    ],
)
async def test_a_failed_call_is_an_error_of_whoever_failed(
    trace_file: Path,
    peer: Peer[InitChannelAsyncStub],
    word: str,
    code: str,
    is_servers_fault: bool,
) -> None:
    with pytest.raises(PortholeError):
        await peer.stub.ReportGuestCapabilities(report(word))
    server, client = sides(trace_file)
    for side, is_error in ((server, is_servers_fault), (client, True)):
        assert attributes(side)["rpc.response.status_code"] == code
        assert attributes(side).get("error.type") == (code if is_error else None)
        assert side.get("status", {}).get("code") == (2 if is_error else None)


async def test_a_call_that_its_client_cancels_is_no_error(
    trace_file: Path, probe: Probe, peer: Peer[InitChannelAsyncStub]
) -> None:
    call = asyncio.ensure_future(ask(peer, "hang"))
    await probe.hanging.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await both_sides(trace_file, probe)
    for side in sides(trace_file):
        assert attributes(side)["rpc.response.status_code"] == "CANCELLED"
        assert "error.type" not in attributes(side)
        assert side.get("status", {}).get("code") is None


async def test_a_call_whose_deadline_is_over_is_an_error_of_both_sides(
    trace_file: Path, probe: Probe, peer: Peer[InitChannelAsyncStub]
) -> None:
    with pytest.raises(DeadlineExceededError):
        await peer.stub.ReportGuestCapabilities(report("hang"), timeout=0.1)
    await both_sides(trace_file, probe)
    for side in sides(trace_file):
        assert attributes(side)["error.type"] == "DEADLINE_EXCEEDED"


async def test_the_durations_of_calls_are_measured(
    trace_file: Path, run_dir: Path, peer: Peer[InitChannelAsyncStub]
) -> None:
    await ask(peer, "fine")
    with pytest.raises(NotFoundError):
        await ask(peer, "NOT_FOUND")
    tracing.shutdown()
    found: dict[str, dict[str, int]] = {}
    last = (run_dir / "metrics.jsonl").read_text().splitlines()[-1]
    for metric in json.loads(last)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
        assert metric["unit"] == "s"
        for point in metric["histogram"]["dataPoints"]:
            named = attributes(point)
            assert named["rpc.method"] == CALL
            by_code = found.setdefault(metric["name"], {})
            by_code[named["rpc.response.status_code"]] = int(point["count"])
    once = {"OK": 1, "NOT_FOUND": 1}
    assert found == {"rpc.server.call.duration": once, "rpc.client.call.duration": once}


def test_what_goes_on_after_its_callers_span_has_ended_links_it(trace_file: Path) -> None:
    with tracing.operation("CreateVm"):
        vm_traceparent = tracing.current_traceparent()
    with (
        tracing.operation("Caller", vm_traceparent=vm_traceparent),
        tracing.operation("TerminateVm", vm_traceparent=vm_traceparent),
    ):
        pass
    found = spans(trace_file)
    [link] = found["TerminateVm"]["links"]
    assert link["spanId"] == found["Caller"]["spanId"]
    assert found["TerminateVm"]["traceId"] == found["Caller"]["traceId"]
    assert found["TerminateVm"]["parentSpanId"] == found["CreateVm"]["spanId"]


def test_an_operation_that_is_cancelled_has_not_failed(trace_file: Path) -> None:
    with pytest.raises(asyncio.CancelledError), tracing.operation("AddShare"):
        raise asyncio.CancelledError
    assert spans(trace_file)["AddShare"].get("status", {}).get("code") is None


def test_a_span_keeps_all_of_its_events(trace_file: Path) -> None:
    with tracing.operation("CreateVm"):
        for number in range(1000):
            tracing.emit(Event("AddGuestDevice", {"number": number}))
    assert len(spans(trace_file)["CreateVm"]["events"]) == 1000


def resource(path: Path) -> dict[str, str]:
    [line] = path.read_text().splitlines()
    found: dict[str, str] = attributes(json.loads(line)["resourceSpans"][0]["resource"])
    return found


def test_the_resource_has_a_namespace_and_what_the_environment_adds(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=ci")
    # Every process inherits this, and the checker has to know which is which.
    monkeypatch.setenv("OTEL_SERVICE_NAME", "everything")
    path = run_dir / "trace.jsonl"
    tracing.setup("owner", ServiceSettings(run_dir=run_dir, trace_file=path))
    with tracing.operation("Once"):
        pass
    tracing.shutdown()
    found = resource(path)
    assert (found["service.namespace"], found["service.name"]) == ("porthole", "owner")
    assert found["deployment.environment.name"] == "ci"
    assert found["service.instance.id"]


def test_a_namespace_of_the_environment_counts(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=mine")
    path = run_dir / "trace.jsonl"
    tracing.setup("owner", ServiceSettings(run_dir=run_dir, trace_file=path))
    with tracing.operation("Once"):
        pass
    tracing.shutdown()
    assert resource(path)["service.namespace"] == "mine"


def test_samplers_and_limits_of_the_environment_make_no_hole(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    for limit in ("SPAN_EVENT_COUNT", "ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH"):
        monkeypatch.setenv(f"OTEL_{limit}_LIMIT", "1")
    path = run_dir / "trace.jsonl"
    tracing.setup("owner", ServiceSettings(run_dir=run_dir, trace_file=path))
    with tracing.operation("Once"):
        tracing.emit(Event("First", {"one": "text", "other": "text"}))
        tracing.emit(Event("Second"))
    tracing.shutdown()
    first, _ = spans(path)["Once"]["events"]
    assert attributes(first) == {"one": "text", "other": "text"}


def test_nothing_is_traced_where_opentelemetry_is_disabled(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    path = run_dir / "trace.jsonl"
    tracing.setup("owner", ServiceSettings(run_dir=run_dir, trace_file=path))
    with tracing.operation("Once"):
        assert tracing.current_traceparent() == ""
    tracing.shutdown()
    assert not path.exists()


async def test_the_span_of_a_failed_call_is_exported_before_its_answer(
    trace_file: Path, peer: Peer[InitChannelAsyncStub], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []
    abort = interceptor._abort

    async def answer(context: interceptor.Context, error: PortholeError) -> None:
        exported.extend(spans(trace_file))
        await abort(context, error)

    monkeypatch.setattr(interceptor, "_abort", answer)
    with pytest.raises(NotFoundError):
        await peer.stub.ReportGuestCapabilities(report("NOT_FOUND"))
    assert exported == [f"{SERVICE}/ReportGuestCapabilities"]


def test_metrics_are_written_at_the_latest_at_shutdown(trace_file: Path, run_dir: Path) -> None:
    tracing.meter().create_counter("porthole.aperture.bytes_in", unit="By").add(
        4096, {"porthole.device.id": "d"}
    )
    tracing.shutdown()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    [resource] = json.loads(lines[-1])["resourceMetrics"]
    [metric] = resource["scopeMetrics"][0]["metrics"]
    assert metric["name"] == "porthole.aperture.bytes_in"
    [point] = metric["sum"]["dataPoints"]
    assert point["asInt"] == "4096"


def test_without_telemetry_nothing_is_recorded_and_nothing_fails() -> None:
    with tracing.operation("Nobody", vm_traceparent=""):
        tracing.emit(Event("Silent"))
        assert tracing.current_traceparent() == ""
    tracing.emit_under("", "thread", Event("Silent"))
    tracing.meter().create_counter("silent").add(1)
    tracing.shutdown()


def test_a_second_setup_changes_nothing(trace_file: Path, run_dir: Path) -> None:
    tracing.setup("other", ServiceSettings(run_dir=run_dir, trace_file=run_dir / "other.jsonl"))
    with tracing.operation("Once"):
        pass
    assert list(spans(trace_file)) == ["Once"]
    assert not (run_dir / "other.jsonl").exists()


def test_a_caller_that_does_not_sample_makes_no_hole_in_a_vms_trace(trace_file: Path) -> None:
    trace_id = "1" * 32
    with tracing.operation("Apply", vm_traceparent=f"00-{trace_id}-{'2' * 16}-00"):
        pass
    assert spans(trace_file)["Apply"]["traceId"] == trace_id


def test_an_event_without_a_vms_context_joins_no_other_trace(trace_file: Path) -> None:
    with tracing.operation("Outer"):
        tracing.emit_under("", "Alone", Event("Happened", {}))
    found = spans(trace_file)
    assert found["Alone"]["traceId"] != found["Outer"]["traceId"]
    assert "parentSpanId" not in found["Alone"]

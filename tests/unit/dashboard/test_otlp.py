"""Requests of OTLP become values; what is none is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from services.dashboard import otlp
from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.otlp import parse_otlp_request
from tests.support.handshake_traces import VALID, change, wsl2
from tests.support.otlp_requests import (
    metrics_document,
    metrics_request,
    spans_of,
    trace_document,
    trace_request,
    vm_id,
)


def test_json_and_protobuf_are_read_alike() -> None:
    as_json = otlp.read_spans(json.dumps(trace_document(wsl2(), 3)).encode(), as_json=True)
    as_protobuf = otlp.read_spans(trace_request(wsl2(), 3), as_json=False)
    assert as_json.spans == as_protobuf.spans
    assert {span.trace_id.hex() for span in as_json.spans} == {f"{4:032x}"}
    assert {vm for span in as_json.spans for vm in span.vm_ids} == {vm_id(3)}
    assert {span.source.service for span in as_json.spans} == {"owner", "guest-init", "devicehost"}


def test_an_event_of_another_vocabulary_makes_no_vm() -> None:
    document = trace_document(wsl2())
    for resource in document["resourceSpans"]:
        for span in resource["scopeSpans"][0]["spans"]:
            for event in span["events"]:
                event["name"] = "SomethingElse"
    read = otlp.read_spans(json.dumps(document).encode(), as_json=True)
    assert not any(span.vm_ids for span in read.spans)


def test_an_id_of_a_vm_that_is_too_long_makes_no_vm() -> None:
    spans = spans_of(change(wsl2(), events.VM_CREATED, {events.VM_ID: "x" * 129}))
    assert "x" * 129 not in {vm for span in spans.spans for vm in span.vm_ids}


@pytest.mark.parametrize(
    "changes",
    [
        {"traceId": ""},
        {"spanId": "00" * 8},
        {"traceId": "ab" * 15},
        {"parentSpanId": "ab" * 7},
    ],
)
def test_a_span_without_valid_ids_is_rejected_alone(changes: dict[str, str]) -> None:
    document = trace_document(wsl2())
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0].update(changes)
    read = otlp.read_spans(json.dumps(document).encode(), as_json=True)
    assert (len(read.spans), read.rejected) == (len(spans_of(wsl2()).spans) - 1, 1)
    answer = ExportTraceServiceResponse.FromString(otlp.trace_answer(read, as_json=False))
    assert answer.partial_success.rejected_spans == 1
    assert "16 bytes" in answer.partial_success.error_message


@pytest.mark.parametrize(
    ("body", "as_json"),
    [
        (b"garbage", False),
        (b"garbage", True),
        (b"[]", True),
        (b"7", True),
        (b"[" * 100_000, True),
        (b'{"resourceSpans": 7}', True),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', True),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "\\ud800"}]}]}]}', True),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}]}', True),
        (b"\xff", True),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, as_json: bool) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        otlp.read_spans(body, as_json=as_json)
    assert caught.value.reason == "OTLP_SYNTAX"
    assert len(caught.value.message) < 400


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(body: bytes, as_json: bool) -> None:
    for read in (otlp.read_spans, otlp.read_points):
        try:
            read(body, as_json=as_json)
        except InvalidArgumentError as error:
            assert error.reason == "OTLP_SYNTAX"  # noqa: PT017


def test_an_empty_request_is_valid() -> None:
    assert otlp.read_spans(b"", as_json=False).spans == ()
    assert otlp.read_spans(b"{}", as_json=True).spans == ()
    assert otlp.trace_answer(otlp.read_spans(b"", as_json=False), as_json=False) == b""
    assert otlp.metrics_answer(as_json=True) == b"{}"
    assert ExportMetricsServiceResponse.FromString(otlp.metrics_answer(as_json=False)) is not None


@pytest.mark.parametrize("case", VALID.values(), ids=VALID)
def test_the_checker_reads_the_same_of_the_short_form(case: Any) -> None:
    frames = otlp.Frames()
    for span in spans_of(case()).spans:
        whole = otlp.span_document(span.source.body, span.body)
        short = frames.short_document(span.source.body, span.body)
        read = [parse_otlp_request({"resourceSpans": [form]}, "w") for form in (whole, short)]
        assert read[0] == read[1]


_value = st.one_of(
    st.builds(lambda text: {"stringValue": text}, st.text(max_size=5)),
    st.builds(lambda truth: {"boolValue": truth}, st.booleans()),
    st.builds(lambda number: {"intValue": str(number)}, st.integers(-(1 << 63), (1 << 63) - 1)),
    # JSON has no literal for the other two.
    st.builds(
        lambda number: {"doubleValue": number}, st.floats(allow_nan=False, allow_infinity=False)
    ),
    st.just({"arrayValue": {"values": [{"intValue": "1"}]}}),
    st.just({}),
)
_pairs = st.lists(st.fixed_dictionaries({"key": st.text(max_size=3), "value": _value}), max_size=3)


@given(_pairs, _pairs, _pairs, st.text(max_size=5))
def test_the_short_form_has_what_the_checker_reads(
    of_resource: Any, of_span: Any, of_event: Any, name: str
) -> None:
    span = {
        "traceId": "ab" * 16,
        "spanId": "cd" * 8,
        "name": name,
        "attributes": of_span,
        "events": [{"name": name, "timeUnixNano": "7", "attributes": of_event}, {}],
    }
    resource = {"resource": {"attributes": of_resource}, "scopeSpans": [{"spans": [span]}]}
    body = json.dumps({"resourceSpans": [resource]}).encode()
    [stored] = otlp.read_spans(body, as_json=True).spans
    forms = (
        otlp.span_document(stored.source.body, stored.body),
        otlp.Frames().short_document(stored.source.body, stored.body),
    )
    read = [parse_otlp_request({"resourceSpans": [form]}, "w") for form in forms]
    assert read[0] == read[1]


def test_a_stored_span_is_shown_whole() -> None:
    document = trace_document(wsl2())
    original = document["resourceSpans"][0]
    original["schemaUrl"] = "s"
    span = original["scopeSpans"][0]["spans"][0]
    span["attributes"] = [
        {"key": "list", "value": {"arrayValue": {"values": [{"doubleValue": 0.5}]}}}
    ]
    span["kind"] = 2
    request = ExportTraceServiceRequest()
    assert request is not None
    [first, *_] = otlp.read_spans(json.dumps(document).encode(), as_json=True).spans
    shown = otlp.span_document(first.source.body, first.body)
    assert shown["resource"] == original["resource"]
    assert shown["scopeSpans"][0]["scope"] == {"name": "porthole"}
    [found] = shown["scopeSpans"][0]["spans"]
    assert (found["traceId"], found["kind"]) == (span["traceId"], 2)
    assert found["attributes"] == span["attributes"]


def test_points_of_a_vm_are_read() -> None:
    body = metrics_request(
        metrics_document(1, [(1000, 5), (2000, 7)], attributes={"porthole.resource": "windows"})
    )
    [first, second] = otlp.read_points(body, as_json=False).points
    assert first.series == second.series
    assert (first.at_ms, first.value, second.at_ms, second.value) == (1000, 5, 2000, 7)
    series = first.series
    assert (series.vm_id, series.name, series.unit, series.kind) == (
        vm_id(1),
        "porthole.device.bytes",
        "By",
        "counter",
    )
    assert (series.service, series.device_id) == ("devicehost", "d")
    assert json.loads(series.attributes) == {"porthole.resource": "windows"}


def test_the_kind_of_a_series() -> None:
    gauge = metrics_document(1, [(1, 0.5)], kind="gauge")
    delta = metrics_document(1, [(1, 5)])
    delta["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"][
        "aggregationTemporality"
    ] = 1
    kinds = [
        otlp.read_points(metrics_request(each), as_json=False).points[0].series.kind
        for each in (gauge, delta)
    ]
    assert kinds == ["gauge", "delta"]


def test_points_of_no_vm_and_points_without_a_value_are_left_out() -> None:
    document = metrics_document(1, [(1, 5), (2, 5)])
    metric = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]
    metric["sum"]["dataPoints"][0]["attributes"] = []
    metric["sum"]["dataPoints"][1]["flags"] = 1
    assert otlp.read_points(metrics_request(document), as_json=False).points == ()


def test_the_vm_may_be_an_attribute_of_the_resource() -> None:
    document = metrics_document(1, [(1, 5)])
    resource = document["resourceMetrics"][0]
    resource["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"][0]["attributes"] = []
    resource["resource"]["attributes"].append(
        {"key": "porthole.vm.id", "value": {"stringValue": "v"}}
    )
    [point] = otlp.read_points(metrics_request(document), as_json=False).points
    assert (point.series.vm_id, point.series.device_id) == ("v", "")

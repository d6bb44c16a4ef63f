"""Reading OTLP JSON lines: the events, and the places of errors."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines, parse_otlp_request
from services.handshake.trace.recorded import Recording, Span
from services.handshake.trace.syntax import checked_id
from tests.support.handshake_traces import record, to_otlp, wsl2


def line(*events: dict[str, Any], **changes: Any) -> str:
    span = {"traceId": "AB" * 16, "spanId": "cd" * 8, "name": "s", "events": list(events)}
    scope = {"scope": {"name": "porthole"}, "spans": [{**span, **changes}]}
    return json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [scope]}]}) + "\n"


def event(name: str = "VmCreated", time: Any = "7", **values: Any) -> dict[str, Any]:
    attributes = [{"key": key, "value": value} for key, value in values.items()]
    return {"name": name, "timeUnixNano": time, "attributes": attributes}


def test_an_event_is_read_whole() -> None:
    text = line(
        event(
            text={"stringValue": "t"},
            number={"intValue": "9223372036854775807"},
            small={"intValue": 7},
            truth={"boolValue": False},
            real={"doubleValue": 1.5},
            several={"arrayValue": {"values": []}},
        )
    )
    [read] = parse_otlp_lines(text, "trace.jsonl").events
    assert (read.name, read.time_unix_nano, read.where) == ("VmCreated", 7, "trace.jsonl line 1")
    assert (read.span.trace_id, read.span.span_id) == ("ab" * 16, "cd" * 8)
    assert read.attributes == {"text": "t", "number": (1 << 63) - 1, "small": 7, "truth": False}


def test_a_span_without_events_is_read_with_its_parent_and_service() -> None:
    span = {
        "traceId": "ab" * 16,
        "spanId": "cd" * 8,
        "parentSpanId": "EF" * 8,
        "name": "porthole.vmowner.v1.VmOwner/CreateVm",
        "attributes": [{"key": "rpc.service", "value": {"stringValue": "a.B"}}],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "owner"}}]}
    request = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
    [read] = parse_otlp_lines(json.dumps(request) + "\n", "f").spans
    name = "porthole.vmowner.v1.VmOwner/CreateVm"
    assert read == Span("ab" * 16, "cd" * 8, "ef" * 8, name, "owner", "a.B", "f line 1")
    assert str(read) == f"span {name!r} of owner (f line 1)"


def test_what_a_span_does_not_say_is_empty() -> None:
    span = {
        "traceId": "ab" * 16,
        "spanId": "cd" * 8,
        "events": [{"attributes": [{"value": {"intValue": 1}}]}],
    }
    request = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    recording = parse_otlp_lines(json.dumps(request) + "\n", "f")
    assert recording.spans == (Span("ab" * 16, "cd" * 8, "", "", "", "", "f line 1"),)
    [event] = recording.events
    assert (event.name, event.time_unix_nano, event.attributes) == ("", 0, {"": 1})


@pytest.mark.parametrize(
    ("attributes", "called"),
    [
        ({"rpc.method": "a.B/Do"}, "a.B"),
        ({"rpc.method": "/a.B/Do"}, "a.B"),
        ({"rpc.method": "a.B/Do", "rpc.service": "other"}, "a.B"),
        ({"rpc.method": "Do", "rpc.service": "a.B"}, "a.B"),
        ({"rpc.method": "Xa.B/Do"}, "Xa.B"),
        ({"rpc.method": "a/B/Do"}, "a/B"),
        ({"rpc.method": "Do"}, ""),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("kind", [2, 3])
def test_the_span_of_a_call_names_its_service(
    attributes: dict[str, str], called: str, kind: int
) -> None:
    pairs = [{"key": key, "value": {"stringValue": text}} for key, text in attributes.items()]
    [read] = parse_otlp_lines(line(kind=kind, attributes=pairs), "f").spans
    assert read.called == called


def test_lines_of_several_processes_and_empty_lines() -> None:
    text = line(event()) + "\n" + line(event(), event()) + '{"resourceSpans": []}\n'
    wheres = [read.where for read in parse_otlp_lines(text, "f").events]
    assert wheres == ["f line 1", "f line 3", "f line 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "t.jsonl line 1: not JSON"),
        (line(event()) + "{'a': 1}\n", "t.jsonl line 2: not JSON"),
        (line(event()) + line(event())[:50], "t.jsonl line 2: the line has no end"),
        (line(event())[:-1], "t.jsonl line 1: the line has no end"),
        ("[" * 100_000 + "\n", "t.jsonl line 1: not JSON"),
        ("[]\n", "t.jsonl line 1: not an OTLP trace export"),
        ("7\n", "t.jsonl line 1: not an OTLP trace export"),
        ('{"resourceMetrics": []}\n', "t.jsonl line 1: not an OTLP trace export"),
        ('{"resourceSpans": {"a": 1}}\n', "t.jsonl line 1: not an OTLP trace export"),
        (line(event(), traceId="00" * 16), "not an id of 32 hexadecimal digits"),
        (line(event(), traceId="q8nMEjRWeJA="), "not an id of 32 hexadecimal digits"),
        (line(event(), parentSpanId="00" * 8), "not an id of 16 hexadecimal digits"),
        (line(event(), spanId=5), "not an OTLP trace export"),
        (line({"attributes": [{"key": 7}]}), "TypeError: the key of an attribute is 7"),
        (line(event(time="soon")), "not an OTLP trace export"),
        (line(event(time=float("inf"))), "not an OTLP trace export"),
        (
            line({**event(), "attributes": [{"value": {"intValue": "x"}}]}),
            "not an OTLP trace export",
        ),
        (line(event(a={"intValue": "x"})), "not an OTLP trace export"),
        (line({**event(), "attributes": [{"key": []}]}), "not an OTLP trace export"),
    ],
)
def test_a_bad_file_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^t\.jsonl line \d") as caught:
        parse_otlp_lines(text, "t.jsonl")
    assert message in caught.value.message
    assert caught.value.reason == "TRACE_SYNTAX"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "events", "attributes", "value", "key"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(_json)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parse_otlp_lines(json.dumps(value) + "\n", "f"), Recording)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidArgumentError):
        assert parse_otlp_lines(text, "f") == Recording()


def test_a_read_trace_can_be_judged() -> None:
    [verdict] = verify(parse_otlp_lines(to_otlp(record(wsl2())), "f"))
    assert verdict.violations == ()


@pytest.mark.parametrize(
    "request_without",
    [
        {"resourceSpans": [{}]},
        {"resourceSpans": [{"scopeSpans": [{}]}]},
        {
            "resourceSpans": [
                {"scopeSpans": [{"spans": [{"traceId": "a" * 32, "spanId": "b" * 16}]}]}
            ]
        },
    ],
)
def test_an_empty_list_may_be_left_out(request_without: dict[str, Any]) -> None:
    assert parse_otlp_lines(json.dumps(request_without) + "\n", "f").events == ()


def test_an_event_without_attributes_may_leave_them_out() -> None:
    [read] = parse_otlp_lines(line({"name": "VmCreated", "timeUnixNano": "7"}), "f").events
    assert read.attributes == {}


def test_what_is_empty_may_be_left_out_of_an_event_and_its_attributes() -> None:
    [read] = parse_otlp_lines(line({"attributes": [{}, {"key": "a"}]}), "f").events
    assert (read.name, read.time_unix_nano, read.attributes) == ("", 0, {})


def test_one_parsed_request_is_read_like_a_line() -> None:
    text = line(event())
    assert parse_otlp_request(json.loads(text), "f line 1") == parse_otlp_lines(text, "f")
    with pytest.raises(InvalidArgumentError, match=r"^here: not an OTLP trace export"):
        parse_otlp_request([], "here")


def test_an_id_is_hexadecimal() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^f line 1: .*ValueError: ") as caught:
        parse_otlp_lines(line(event(), traceId="g" * 32), "f")
    assert caught.value.metadata == {"where": "f line 1"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AQIDBAUGBwg=", "0102030405060708"),
        ("AQIDBAUGBwg", "0102030405060708"),
        ("AQIDBAUGBwgJCgsMDQ4PEA", "0102030405060708090a0b0c0d0e0f10"),
        ("0102030405060ABC", "0102030405060abc"),
    ],
)
def test_an_id_may_be_in_base64_with_and_without_its_padding(text: str, found: str) -> None:
    assert checked_id(text, len(found)) == found


@pytest.mark.parametrize("text", ["AQID!BAUGBwg=", "AQIDBAUGBw", "A", "", "0" * 16, "AAAAAAAAAAA="])
def test_what_is_no_id_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=f"^'{text}' is not an id of 16 hexadecimal digits"):
        checked_id(text, 16)


def test_a_span_names_itself() -> None:
    bare = Span("t", "s", where="f line 1")
    assert str(bare) == "span '' of nobody (f line 1)"
    assert str(replace(bare, name="Boot", service="owner")) == "span 'Boot' of owner (f line 1)"

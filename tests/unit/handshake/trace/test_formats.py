"""Every format that tools write: the same verdict from each, and clear errors for what is none."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import verify
from services.handshake.trace.formats import parse_trace
from services.handshake.trace.gzipped import inflate, unpack
from services.handshake.trace.recorded import Recording, joined
from tests.support.handshake_traces import VALID, VM, change, not_as_requested, record, wsl2
from tests.support.trace_formats import (
    FORMATS,
    jaeger,
    jaeger_3,
    otlp_document,
    otlp_lines,
    packed,
    tempo,
    tempo_2,
)
from tests.unit.handshake.trace.test_checker import BROKEN

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "trace.json"
CASES = [
    *((name, record(steps())) for name, steps in VALID.items()),
    ("not_as_requested", record(not_as_requested())),
    *BROKEN,
]


def read(text: str) -> Recording:
    return parse_trace(text.encode(), NAME)


def refusal(text: str | bytes) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_trace(text.encode() if isinstance(text, str) else text, NAME)
    assert caught.value.reason == "TRACE_SYNTAX"
    return caught.value.message


def verdicts(recording: Recording) -> list[tuple[object, ...]]:
    """Verdicts without the details, which have ids of spans and places in files."""
    return [
        (vm.vm_id, vm.kind, vm.token, vm.devices, sorted(broken.rule for broken in vm.violations))
        for vm in verify(recording)
    ]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("case", "recorded"), CASES, ids=[name for name, _ in CASES])
def test_every_format_gives_the_same_verdict(case: str, recorded: Recording, form: str) -> None:
    assert verdicts(read(FORMATS[form](recorded))) == verdicts(recorded)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_keeps_all_that_the_checker_reads(form: str) -> None:
    largest: dict[str, events.Attribute | None] = {
        events.POOL_SIZE_BYTES: events.LARGEST_NUMBER,
        events.KERNEL_RELEASE: "",
    }
    recorded = record(change(wsl2(), events.GUEST_KERNEL_INFO, largest))
    got = read(FORMATS[form](recorded))
    order = {event.time_unix_nano: event for event in recorded.events}
    assert len(got.events) == len(recorded.events)
    for event in got.events:
        due = order[event.time_unix_nano]
        assert (event.name, event.attributes) == (due.name, due.attributes)
        assert event.span.service == due.span.service
        assert event.span.name == due.span.name
        assert event.where.startswith(NAME)
    assert {span.called for span in got.spans} == {span.called for span in recorded.spans}
    known = {(span.trace_id, span.span_id) for span in got.spans}
    orphans = [span for span in got.spans if (span.trace_id, span.parent_id) not in known]
    assert len(orphans) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_may_have_a_mark_at_its_beginning(form: str) -> None:
    text = FORMATS[form](record(wsl2()))
    assert parse_trace(b"\xef\xbb\xbf" + text.encode(), NAME) == read(text)


def test_a_document_is_recognized_whether_or_not_its_line_ends() -> None:
    text = jaeger(record(wsl2()))
    assert "\n" not in text
    assert read(text) == read(text + "\n") == read(f"\n {text}\n\n")


@pytest.mark.parametrize(
    "text", ["", "\n", " \r\n\n", '{"trace": {}}', '{"result": {}}', '{"data": []}']
)
def test_nothing_is_no_span(text: str) -> None:
    assert read(text) == Recording()


def test_a_span_is_named_by_its_number_in_the_document() -> None:
    spans = read(otlp_document(record(wsl2()))).spans
    assert [span.where for span in spans[:2]] == ["trace.json span 1", "trace.json span 2"]


def bad(write: Callable[[Recording], str], change: Callable[[Any], None]) -> str:
    document = json.loads(write(record(wsl2())))
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("garbage", "line 1", "not JSON"),
        (f"{otlp_lines(record(wsl2()))}garbage\n", "line ", "not JSON"),
        (otlp_document(record(wsl2()))[:-9], "line ", "the file was cut off; known are"),
        ('{"a"', "line 1", "; the file was cut off; known are"),
        ('{"a" 1}', "line 1", "':' delimiter (column 6); known are"),
        (jaeger(record(wsl2()))[:999], "line 1", "not JSON"),
        ("[" * 100_000, "line 1", "not JSON"),
        ("9" * 10_000, "line 1", "not JSON"),
        ('{\n"data": []}\n{"data": []}', "line 2", "give each a file of its own"),
        ('\n{\n"data": []}\n{"data": []}', "line 3", "give each a file of its own"),
        ("7", "", "JSON's int; known are"),
        ("[[]]", "document 1", "JSON's list; known are"),
        ("{}", "", "a JSON object with nothing in it"),
        ('{"resourceMetrics": []}', "", "a JSON object with 'resourceMetrics'; known are"),
        ('{"trace": {"batches": 7}}', "span 1", "not an OTLP trace export"),
        ('{"trace": {"a": 7}}', "", "a JSON object with 'trace'"),
        ('{"trace": {}, "status": "PARTIAL", "message": "too large"}', "", "too large"),
        ('{"trace": {}, "status": 1}', "", "a part of the trace only (status 1): no reason"),
        ('{"a": 1, "b": 2}', "", "a JSON object with 'a', 'b'; known are"),
        ('[{"scopeSpans": 7}]', "span 1", "not an OTLP trace export"),
        ('{"data": null, "errors": [{"code": 404, "msg": "not found"}]}', "", "not found"),
        ('{"data": [7]}', "span 1", "not Jaeger's JSON"),
        ('{"data": [{"spans": [{}]}]}', "span 1", "not Jaeger's JSON: KeyError: 'traceID'"),
        ('{"spans": [{}], "processes": {}}', "span 1", "not Jaeger's JSON: KeyError: 'traceID'"),
        (
            bad(jaeger, lambda d: d["data"][0]["spans"][2].update(spanID="xyz")),
            "span 3",
            "'0000000000000xyz'",
        ),
        (
            bad(jaeger, lambda d: d["data"][0]["spans"][1].update(logs=[{"timestamp": "soon"}])),
            "span 2",
            "not Jaeger's JSON: ValueError",
        ),
        (
            bad(
                tempo, lambda d: d["batches"][0]["scopeSpans"][0]["spans"][1].update(spanId="AA==")
            ),
            "span 2",
            "'AA==' is not an id of 16 hexadecimal digits, or of as many in base64",
        ),
        (
            bad(tempo_2, lambda d: d["trace"]["resourceSpans"][0]["scopeSpans"].append(7)),
            "span ",
            "not an OTLP trace export: AttributeError",
        ),
        (bad(jaeger_3, lambda d: d["result"].update(resourceSpans=7)), "span 1", "TypeError"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_place(text: str, place: str, said: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{NAME}{' ' if place else ':'}{place}")
    assert said in message


def test_other_encodings_are_refused() -> None:
    said = refusal(otlp_lines(record(wsl2())).encode("utf-16"))
    assert said.startswith(f"{NAME}: not UTF-8 at byte 0; known are")


def test_a_span_of_two_inputs_counts_once() -> None:
    recorded = record(wsl2())
    lines = read(otlp_lines(recorded))
    half = Recording(lines.spans[:5], tuple(e for e in lines.events if e.span in lines.spans[:5]))
    assert joined([half, lines, lines]).spans == lines.spans
    assert verdicts(joined([half, lines, lines])) == verdicts(recorded)


def test_a_handshake_may_be_in_several_files() -> None:
    lines = otlp_lines(record(wsl2())).splitlines(keepends=True)
    files = ["".join(lines[start::3]) for start in range(3)]
    assert not all(vm.valid for vm in verify(read(files[0])))
    assert [vm.valid for vm in verify(joined(map(read, files)))] == [True]


def test_the_order_within_a_span_is_kept_where_a_format_has_too_coarse_times() -> None:
    recorded = record(wsl2())
    at_once = tuple(
        replace(event, time_unix_nano=event.time_unix_nano // 10**10 * 10**10 + place)
        for place, event in enumerate(recorded.events)
    )
    [before] = verify(replace(recorded, events=at_once))
    assert before.valid
    names = [e.name for e in read(jaeger(replace(recorded, events=at_once))).events]
    assert names.index(events.VM_CREATED) < names.index(events.GUEST_BOOTED)


def test_an_array_of_resources_is_a_document() -> None:
    document = json.loads(otlp_document(record(wsl2())))["resourceSpans"]
    assert verdicts(read(json.dumps(document))) == verdicts(record(wsl2()))


def test_a_trace_of_jaeger_may_stand_alone() -> None:
    [trace] = json.loads(jaeger(record(wsl2())))["data"]
    assert verdicts(read(json.dumps(trace))) == verdicts(record(wsl2()))


def jaeger_span(**members: Any) -> Recording:
    """A span as Elasticsearch's documents have it, with nothing but its ids and these members."""
    span = {"traceID": "a" * 32, "spanID": "b" * 16, **members}
    return read(json.dumps({"spans": [span], "processes": {}}))


def test_what_a_span_of_jaeger_does_not_say_is_empty() -> None:
    [span] = jaeger_span().spans
    assert (span.name, span.service, span.parent_id) == ("", "", "")
    recording = jaeger_span(logs=[{"timestamp": 1}], process={"serviceName": "owner"})
    assert [event.name for event in recording.events] == [""]
    assert recording.spans[0].service == "owner", "the process stands in the span"


@pytest.mark.parametrize(
    ("kind", "trace", "parent"),
    [
        ("CHILD_OF", "a" * 32, "c" * 16),
        ("FOLLOWS_FROM", "a" * 32, ""),
        ("CHILD_OF", "d" * 32, ""),
    ],
)
def test_the_parent_of_a_span_of_jaeger_is_in_its_trace(kind: str, trace: str, parent: str) -> None:
    reference = {"refType": kind, "traceID": trace, "spanID": "c" * 16}
    [span] = jaeger_span(references=[reference]).spans
    assert span.parent_id == parent


LIMIT = 1 << 20


def unpacked(content: bytes, limit: int = LIMIT) -> bytes:
    return unpack(content, "t.gz", limit, "the remedy")


def test_gzip_is_recognized_by_its_magic() -> None:
    assert unpacked(b"text") == b"text"
    assert unpacked(packed("text")) == b"text"
    assert unpacked(packed("one") + packed("two") + b"\0" * 512) == b"onetwo"
    assert unpacked(packed("x" * 9), 9) == b"x" * 9


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        (packed("x" * 10), "INPUT_TOO_LARGE", "9 bytes when it is unpacked; the remedy"),
        (packed("x" * 5) * 2, "INPUT_TOO_LARGE", "the remedy"),
        (packed("\0" * (64 << 20)), "INPUT_TOO_LARGE", "the remedy"),
        (packed("text")[:-3], "TRACE_SYNTAX", "cut off"),
        (packed("text")[:-8] + b"12345678", "TRACE_SYNTAX", "damaged gzip"),
        (packed("text") + b"more", "TRACE_SYNTAX", "damaged gzip"),
        (b"\x1f\x8b", "TRACE_SYNTAX", "cut off"),
    ],
    ids=["one more", "members", "bomb", "cut off", "wrong sum", "more", "magic alone"],
)
def test_bad_gzip_is_refused(content: bytes, reason: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^t\.gz") as caught:
        unpacked(content, 9)
    assert caught.value.reason == reason
    assert said in caught.value.message


def test_a_refusal_has_the_file_and_the_bound() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        unpacked(packed("x" * 10), 9)
    assert caught.value.metadata == {"path": "t.gz", "limit": "9"}


def test_zlib_is_unpacked_without_a_magic() -> None:
    assert inflate(zlib.compress(b"text"), 4) == b"text"


def test_only_zeros_may_follow() -> None:
    with pytest.raises(zlib.error):
        inflate(packed("text") + b"X\0", LIMIT)


def test_never_is_more_unpacked_than_one_byte_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting:
        def __init__(self, window: int) -> None:
            self._real = real(window)

        def decompress(self, content: bytes, most: int = 0) -> bytes:
            asked.append(most)
            return self._real.decompress(content, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    real = zlib.decompressobj
    monkeypatch.setattr("services.handshake.trace.gzipped.zlib.decompressobj", Counting)
    assert inflate(packed("one") + packed("two"), 9) == b"onetwo"
    assert asked == [10, 7], "0 would be as many as there are"


@given(st.binary() | st.binary().map(lambda tail: b"\x1f\x8b\x08" + tail))
def test_any_bytes_are_unpacked_or_refused(content: bytes) -> None:
    with suppress(InvalidArgumentError):
        unpacked(content)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parse_trace(content, NAME), Recording)


_NAMES = [
    *("resourceSpans", "batches", "trace", "result", "data", "spans", "processes", "status"),
    *("scopeSpans", "events", "attributes", "value", "key", "logs", "fields", "tags", "type"),
    *("references", "traceID", "spanID", "traceId", "spanId", "process", "processID", "p1"),
    *("timestamp", "timeUnixNano", "refType", "errors"),
]
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "12", "ab" * 16, "CHILD_OF", "int64", "string", "PARTIAL"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=6)
        | st.sampled_from(_NAMES).flatmap(lambda name: inner.map(lambda value: {name: [value]}))
    ),
    max_leaves=30,
)


@given(_json, st.sampled_from([None, 2]))
def test_any_json_is_read_or_refused(value: Any, indent: int | None) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(read(json.dumps(value, indent=indent)), Recording)


DOCUMENTS = {
    form: json.loads(write(record(wsl2()[:3])))
    for form, write in FORMATS.items()
    if form != "otlp_lines"
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


@given(st.data())
def test_any_change_of_a_document_is_read_or_refused(data: st.DataObject) -> None:
    document = json.loads(json.dumps(DOCUMENTS[data.draw(st.sampled_from(sorted(DOCUMENTS)))]))
    *path, last = data.draw(st.sampled_from(places(document)[1:]))
    holder = document
    for key in path:
        holder = holder[key]
    holder[last] = data.draw(_json)
    with suppress(InvalidArgumentError):
        recording = read(json.dumps(document))
        with suppress(InvalidArgumentError):  # TRACE_WITHOUT_VM
            assert verify(recording)[0].vm_id in {VM, *(e.vm_id for e in recording.events)}

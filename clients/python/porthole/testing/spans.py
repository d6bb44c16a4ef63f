"""What a collector keeps of a request: a line of OTLP JSON, its traces, and the VMs in it.

Owns the JSON form of OTLP. Must not know how a request arrives.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import MessageToDict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

BOOTED: Final = "GuestBooted"
ENDED: Final = "VmTerminated"
_VM_ID: Final = "porthole.vm.id"
_IDS: Final = ("traceId", "spanId", "parentSpanId")


@dataclass(frozen=True, slots=True)
class Batch:
    """The spans of one request.

    Attributes:
        line: The request as a line of OTLP JSON.
        trace_ids: The traces of its spans.
        events: Name, VM and trace of each event of a VM.
    """

    line: str
    trace_ids: frozenset[str]
    events: tuple[tuple[str, str, str], ...]


def from_message(request: Message) -> Batch:
    """Return a request that came as protobuf."""
    document = MessageToDict(request, use_integers_for_enums=True)
    for span in _spans(document):
        holders = (span, *span.get("links", ()))
        for holder in holders:
            for key in _IDS:
                if key in holder:
                    holder[key] = base64.b64decode(holder[key]).hex()
    return from_document(document)


def from_document(document: Any) -> Batch:
    """Return a request that came as JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        spans = list(_spans(document))
        events = tuple(
            (str(event.get("name", "")), vm_id, str(span["traceId"]).lower())
            for span in spans
            for event in span.get("events", ())
            if (vm_id := _vm_id(event))
        )
        trace_ids = frozenset(str(span["traceId"]).lower() for span in spans)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"no OTLP: {type(error).__name__}: {error}") from None
    return Batch(json.dumps(document, separators=(",", ":")) + "\n", trace_ids, events)


def _spans(document: Any) -> Iterator[dict[str, Any]]:
    for resource_spans in document.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            yield from scope_spans.get("spans", ())


def _vm_id(event: dict[str, Any]) -> str:
    for pair in event.get("attributes", ()):
        if pair.get("key") == _VM_ID:
            return str(pair.get("value", {}).get("stringValue", ""))
    return ""

"""The JSON form of OTLP: from a message, and to one.

Owns the differences from protobuf's JSON (opentelemetry-proto, docs/specification.md, "JSON
Protobuf Encoding"): ids are hexadecimal, enums are numbers. Must not know files or networks.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

M = TypeVar("M", bound=Message)

IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})
"""The members that are ids."""

DEPTH_LIMIT: Final = 100
"""Deepest nesting that is read, as that of protobuf's binary form."""


def to_otlp_json(message: Message) -> Any:
    """Return the JSON form of a message, as values for `json.dumps`."""
    return _with_ids(
        MessageToDict(message, use_integers_for_enums=True), lambda text: _decoded(text).hex()
    )


def from_otlp_json(document: Any, message: M) -> M:
    """Read the JSON form into an empty message. Members that are not known are left out.

    Args:
        document: What `json.loads` returned.
        message: The message.

    Returns:
        The message.

    Raises:
        ValueError: It is no such message; the text says why.
    """
    if not isinstance(document, dict):
        raise ValueError("it is no object")
    try:
        return ParseDict(
            _with_ids(document, _encoded),
            message,
            ignore_unknown_fields=True,
            max_recursion_depth=DEPTH_LIMIT,
        )
    except (ParseError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)


def _encoded(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


def _with_ids(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {
            key: change(item) if key in IDS and isinstance(item, str) else _with_ids(item, change)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_ids(item, change) for item in value]
    return value

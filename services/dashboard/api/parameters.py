"""The parameters of requests: parsed, bounded, and refused with their names.

Must not know HTTP beyond names and texts.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from services.dashboard.records import TIME_LIMIT_MS, Verdict
from services.dashboard.store import Filters
from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROWS_LIMIT: Final = 500
POINTS: Final = (2, 400, 2_000)
"""Least, usual and most points of a series."""

TEXT_LIMIT: Final = 256
"""Longest text of a parameter."""

_PAGE_LIMIT: Final = 1_024
_KINDS: Final = ("WSL2", "WSLC")
_ID: Final = re.compile(r"[0-9a-f]+")


def check_names(given: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse a parameter that is not known.

    Raises:
        InvalidArgumentError: PARAMETER_UNKNOWN.
    """
    for name in given:
        if name not in known:
            raise InvalidArgumentError(
                "PARAMETER_UNKNOWN", f"{name!r} is none of {', '.join(known)}", parameter=name
            )


def filters(given: Mapping[str, str]) -> Filters:
    """Read the parameters of the list of VMs.

    Raises:
        InvalidArgumentError: PARAMETER_UNKNOWN, PARAMETER_INVALID, PAGE_SYNTAX.
    """
    check_names(
        given, ("verdict", "kind", "kernel", "rule", "vm", "since", "until", "page", "limit")
    )
    kind = text_of(given, "kind")
    if kind and kind not in _KINDS:
        raise _invalid("kind", f"it is none of {', '.join(_KINDS)}")
    return Filters(
        verdicts=_verdicts(text_of(given, "verdict")),
        kind=kind,
        kernel=text_of(given, "kernel"),
        rule=text_of(given, "rule"),
        vm=text_of(given, "vm"),
        since_ms=time_ms(given, "since"),
        until_ms=time_ms(given, "until"),
        after=_after(given.get("page", "")),
        limit=number(given, "limit", (1, 100, ROWS_LIMIT)),
    )


def page_text(after: tuple[int, str]) -> str:
    """Write the place of a page, for `page`."""
    return base64.urlsafe_b64encode(json.dumps(after).encode()).decode().rstrip("=")


def number(given: Mapping[str, str], name: str, bounds: tuple[int, int, int]) -> int:
    """Read a whole number.

    Args:
        given: All parameters.
        name: The parameter.
        bounds: Its least value, its value when it is not given, and its greatest.

    Raises:
        InvalidArgumentError: PARAMETER_INVALID.
    """
    least, usual, most = bounds
    text = given.get(name, "")
    if not text:
        return usual
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise _invalid(name, f"it is no number from {least} to {most}")
    return int(text)


def time_ms(given: Mapping[str, str], name: str) -> int | None:
    """Read a time: milliseconds since 1970, or RFC 3339; None: it is not given.

    Raises:
        InvalidArgumentError: PARAMETER_INVALID.
    """
    text = text_of(given, name)
    if not text:
        return None
    if text.isascii() and text.isdecimal() and len(text) < 20:
        return min(int(text), TIME_LIMIT_MS)
    try:
        # A plus sign in an address stands for a space.
        time = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise _invalid(name, "write milliseconds since 1970, or a time as 2026-11-28T10:00:00Z")
    return max(int(time.timestamp() * 1000), 0)


def text_of(given: Mapping[str, str], name: str) -> str:
    """Read a text; empty when it is not given.

    Raises:
        InvalidArgumentError: PARAMETER_INVALID when it is too long.
    """
    value = given.get(name, "")
    if len(value) > TEXT_LIMIT:
        raise _invalid(name, f"it has more than {TEXT_LIMIT} characters")
    return value


def id_bytes(text: str, length: int) -> bytes | None:
    """Read an id of `length` bytes in hexadecimal; None: it is none."""
    return bytes.fromhex(text) if len(text) == 2 * length and _ID.fullmatch(text) else None


def _verdicts(text: str) -> tuple[Verdict, ...]:
    try:
        return tuple(dict.fromkeys(Verdict(each) for each in text.split(",") if each))
    except ValueError:
        raise _invalid("verdict", f"write some of {', '.join(Verdict)}") from None


def _after(text: str) -> tuple[int, str] | None:
    if not text:
        return None
    try:
        if len(text) > _PAGE_LIMIT:
            raise ValueError("it is too long")
        match json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))):
            case [int(started_ms), str(vm_id)] if 0 <= started_ms <= TIME_LIMIT_MS:
                vm_id.encode()  # half a surrogate pair is no text
                return started_ms, vm_id
    except (ValueError, binascii.Error, RecursionError):
        pass
    raise InvalidArgumentError("PAGE_SYNTAX", "`page` is no `next` of an earlier answer")


def _invalid(name: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError("PARAMETER_INVALID", f"`{name}`: {why}", parameter=name)

"""Parameters are read, or refused by name."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dashboard.api import parameters
from services.dashboard.records import TIME_LIMIT_MS, Verdict
from services.dashboard.store import Filters
from services.handshake.errors import InvalidArgumentError


def test_nothing_given_asks_for_all() -> None:
    assert parameters.filters({}) == Filters()
    assert parameters.filters({"verdict": "", "since": "", "page": "", "limit": ""}) == Filters()


def test_all_given() -> None:
    given_ = {
        "verdict": "broken,open,broken",
        "kind": "WSLC",
        "kernel": "6.18",
        "rule": "TOKEN_MISSING",
        "vm": "4f",
        "since": "1000",
        "until": "1970-01-01T00:00:02+00:00",
        "page": parameters.page_text((5, "vm/é")),
        "limit": "7",
    }
    assert parameters.filters(given_) == Filters(
        verdicts=(Verdict.BROKEN, Verdict.OPEN),
        kind="WSLC",
        kernel="6.18",
        rule="TOKEN_MISSING",
        vm="4f",
        since_ms=1000,
        until_ms=2000,
        after=(5, "vm/é"),
        limit=7,
    )


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T01:00:01 01:00", 1000),
        ("1960-01-01T00:00:00Z", 0),
        ("9" * 19, TIME_LIMIT_MS),
    ],
)
def test_times(text: str, milliseconds: int) -> None:
    assert parameters.time_ms({"since": text}, "since") == milliseconds


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ({"verdicts": "broken"}, "PARAMETER_UNKNOWN"),
        ({"verdict": "Broken"}, "PARAMETER_INVALID"),
        ({"kind": "wslc"}, "PARAMETER_INVALID"),
        ({"vm": "x" * 257}, "PARAMETER_INVALID"),
        ({"limit": "0"}, "PARAMETER_INVALID"),
        ({"limit": "501"}, "PARAMETER_INVALID"),
        ({"limit": "-1"}, "PARAMETER_INVALID"),
        ({"limit": "1e2"}, "PARAMETER_INVALID"),
        ({"limit": "٣"}, "PARAMETER_INVALID"),
        ({"limit": "9" * 5000}, "PARAMETER_INVALID"),
        ({"since": "yesterday"}, "PARAMETER_INVALID"),
        ({"since": "2026-11-28T10:00:00"}, "PARAMETER_INVALID"),
        ({"since": "-5"}, "PARAMETER_INVALID"),
        ({"page": "!"}, "PAGE_SYNTAX"),
        ({"page": "W10"}, "PAGE_SYNTAX"),
        ({"page": parameters.page_text((-1, "a"))}, "PAGE_SYNTAX"),
        ({"page": parameters.page_text((1 << 60, "a"))}, "PAGE_SYNTAX"),
        ({"page": parameters.page_text((1, "\ud800"))}, "PAGE_SYNTAX"),
        ({"page": "W1tb" * 1000}, "PAGE_SYNTAX"),
        ({"page": "ü"}, "PAGE_SYNTAX"),
    ],
)
def test_what_is_refused(given_: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parameters.filters(given_)
    assert caught.value.reason == reason


@given(st.text(), st.sampled_from(["verdict", "since", "page", "limit", "vm"]))
def test_any_text_is_read_or_refused(text: str, name: str) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parameters.filters({name: text}), Filters)


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("00ff", 2, b"\x00\xff"),
        ("00FF", 2, None),
        ("00ff", 3, None),
        ("00 f", 2, None),
        ("", 2, None),
    ],
)
def test_ids(text: str, length: int, expected: bytes | None) -> None:
    assert parameters.id_bytes(text, length) == expected

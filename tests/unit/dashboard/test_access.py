"""Who may ask."""

from __future__ import annotations

import pytest

from services.dashboard.access import Access, is_token

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LOCALHOST:4380",
        "127.0.0.1",
        "127.0.0.1:4380",
        "127.1.2.3:80",
        "[::1]",
        "[::1]:4380",
    ],
)
def test_names_of_this_machine_may_ask(host: str) -> None:
    assert Access().refusal({"host": host} if host else {}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:4380",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1:4380",
        "[::2]:80",
        "@",
        "a b",
        "localhost:80:80",
    ],
)
def test_another_name_is_refused(host: str) -> None:
    refusal = Access().refusal({"host": host})
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (403, "HOST_UNKNOWN")
    assert host not in refusal.message


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, ""),
        ({"authorization": f"bearer  {TOKEN} "}, ""),
        ({"cookie": f"a=b; porthole_dashboard={TOKEN}"}, ""),
        ({}, TOKEN),
    ],
)
def test_the_token_is_enough(headers: dict[str, str], given: str) -> None:
    assert Access(TOKEN).refusal({"host": "dashboard.example", **headers}, given) is None


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "ACCESS_TOKEN_MISSING"),
        ({"authorization": "Basic eDp5"}, "ACCESS_TOKEN_MISSING"),
        ({"authorization": "Bearer "}, "ACCESS_TOKEN_MISSING"),
        ({"cookie": "\x00=;;"}, "ACCESS_TOKEN_MISSING"),
        ({"authorization": "Bearer nonsense"}, "ACCESS_TOKEN_WRONG"),
        ({"authorization": "Bearer ünicode"}, "ACCESS_TOKEN_WRONG"),
        ({"cookie": "porthole_dashboard=nonsense"}, "ACCESS_TOKEN_WRONG"),
    ],
)
def test_without_the_token_nobody_may_ask(headers: dict[str, str], reason: str) -> None:
    refusal = Access(TOKEN).refusal({"host": "127.0.0.1", **headers})
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (401, reason)


@pytest.mark.parametrize("text", ["", "short", "with space 0123456789", "ü" * 20, "x" * 257])
def test_what_is_no_token(text: str) -> None:
    assert not is_token(text)


def test_what_is_a_token() -> None:
    assert is_token(TOKEN)
    assert is_token("A-_.~" * 10)

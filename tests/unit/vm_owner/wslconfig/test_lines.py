"""The syntax of `.wslconfig`, as WSL reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vm_owner.wslconfig.lines import Setting, UnreadableLine, read_lines


def settings(text: str) -> list[tuple[str, str, int]]:
    read = list(read_lines(text))
    assert all(isinstance(item, Setting) for item in read), read
    return [(item.name, item.value, item.line) for item in read if isinstance(item, Setting)]


def test_sections_keys_comments_and_a_byte_order_mark() -> None:
    text = "\ufeff# one\n  orphan = 1\n[wsl2] # two\r\na=b\r\tKey2\t=\tc d \t# three\n\n[x]\n"
    assert settings(text) == [("orphan", "1", 2), ("wsl2.a", "b", 4), ("wsl2.Key2", "c d", 5)]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", ""),
        ("a#b", "a"),
        ('"a # b"', "a # b"),
        ('" a "', " a "),
        ('a" "b', "a b"),
        ("a ; b", "a ; b"),
        (r"C:\\wsl\\kernel", r"C:\wsl\kernel"),
        (r"\"a\"", '"a"'),
        (r"a\tb\nc\b", "a\tb\nc\b"),
        ("a = b", "a = b"),
        ("one\\\n  two", "one  two"),
        ("one\\\r\n\\\ntwo # x", "onetwo"),
        ("one\\", "one"),
    ],
)
def test_a_value(written: str, value: str) -> None:
    [(name, read, line)] = settings(f"k = {written}")
    assert (name, read, line) == ("k", value, 1)


def test_lines_are_counted_across_continuations() -> None:
    assert settings("a=1\\\n2\nb=3") == [("a", "12", 1), ("b", "3", 3)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "neither"),
        ("; a comment of other programs", "neither"),
        ("[ wsl2 ]", "neither"),
        ("[wsl2] x", "neither"),
        ("[wsl 2]", "neither"),
        ("1key=x", "neither"),
        ("a.b=x", "neither"),
        ("= x", "neither"),
        ('k="x', "quote"),
        (r"k=C:\wsl", r"escape \w"),
        ("k=one\\ x", "escape"),
    ],
)
def test_a_line_that_cannot_be_read_is_reported_and_skipped(line: str, why: str) -> None:
    bad, good = read_lines(f"  {line} \na=b")
    assert isinstance(bad, UnreadableLine)
    assert (bad.text, bad.line) == (line, 1)
    assert why in bad.why
    assert good == Setting("a", "b", 2)


@given(st.text(st.sampled_from('a=[]#"\\ \t\n\r;1n')))
def test_no_text_is_too_strange(text: str) -> None:
    lines = text.count("\n") + text.count("\r") + 1
    for item in read_lines(text):
        assert 1 <= item.line <= lines

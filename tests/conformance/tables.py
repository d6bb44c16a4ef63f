"""The cases of the tables in tables/, read from text.

A table has cases. A case begins with its name in brackets, followed by one line per call:

    [a name that is too long {kind}] kind = file dir
    root: make {kind} f
    alice: rename f <256> -> ENAMETOOLONG

A case with a variable stands for one case per value; with two variables, one per pair of values.
`<256>` is a name of 256 bytes, `<path:4096>` a path of 4096 bytes that leads to `.`; `\\xff` is a
byte. The required answer follows the arrow: an errno or a result. Without an arrow the call must
succeed; `*` allows any answer that is the same on both. Lines that begin with "#" are remarks.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES: Final = Path(__file__).with_name("tables")
_HEAD: Final = re.compile(r"\[(?P<name>[^]]+)\](?P<variables>.*)")
_VARIABLE: Final = re.compile(r"(\w+) = ([^=]+?)(?=\s+\w+ =|$)")
_NAME: Final = re.compile(r"<(\d+)>")
_PATH: Final = re.compile(r"<path:(\d+)>")
_BYTE: Final = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Line:
    """One call.

    Attributes:
        number: Of the line in the table.
        who: The user that makes the call.
        words: The call and its arguments.
        expected: The required answer; empty: any result, but no errno.
    """

    number: int
    who: str
    words: tuple[bytes, ...]
    expected: str


@dataclass(frozen=True, slots=True)
class Case:
    """Some calls in a directory of their own, which every user may write."""

    name: str
    lines: tuple[Line, ...]


def read_tables() -> list[Case]:
    """Read all tables."""
    return [case for table in sorted(TABLES.glob("*.txt")) for case in _read(table)]


def _read(table: Path) -> Iterator[Case]:
    head: re.Match[str] | None = None
    body: list[tuple[int, str]] = []
    for number, text in enumerate(table.read_text("utf-8").splitlines(), 1):
        if not text.strip() or text.startswith("#"):
            continue
        if text.startswith("["):
            if head:
                yield from _expand(table.stem, head, body)
            head, body = _HEAD.fullmatch(text), []
            assert head, f"{table.name}:{number}"
        else:
            body.append((number, text))
    assert head, f"{table.name} is empty"
    yield from _expand(table.stem, head, body)


def _expand(table: str, head: re.Match[str], body: list[tuple[int, str]]) -> Iterator[Case]:
    variables = {name: words.split() for name, words in _VARIABLE.findall(head["variables"])}
    for values in itertools.product(*variables.values()):
        chosen = dict(zip(variables, values, strict=True))
        yield Case(
            f"{table}: {_fill(head['name'], chosen)}",
            tuple(_line(number, _fill(text, chosen)) for number, text in body),
        )


def _fill(text: str, chosen: dict[str, str]) -> str:
    for name, value in chosen.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _line(number: int, text: str) -> Line:
    call, _, expected = text.partition(" -> ")
    who, _, words = call.partition(": ")
    assert words, f"line {number}: {text!r} names nobody who acts"
    answer = _word(expected.strip()).decode("latin-1")
    return Line(number, who, tuple(map(_word, words.split())), answer)


def _word(text: str) -> bytes:
    text = _NAME.sub(lambda match: "n" * int(match[1]), text)
    text = _PATH.sub(lambda match: ("./" * int(match[1]))[: int(match[1]) - 1] + ".", text)
    text = _BYTE.sub(lambda match: chr(int(match[1], 16)), text)
    return text.encode("latin-1")

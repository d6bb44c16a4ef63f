r"""The syntax of `.wslconfig`: text in, settings and unreadable lines out, as WSL reads them.

A line is empty, `[section]` or `key = value`. `#` begins a comment anywhere outside of double
quotes; `;` does not. A value loses its quotes, and the white space around it. A backslash makes
`\\`, `\"`, `\b`, `\n` and `\t`; at the end of a line it continues the value in the next one.
Must not know keys: the names here are as they are written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_BREAK: Final = re.compile(r"\r\n|\n|\r")
_SECTION: Final = re.compile(r"\[([A-Za-z][A-Za-z0-9]*)\][ \t]*(?:#.*)?")
_KEY: Final = re.compile(r"([A-Za-z][A-Za-z0-9]*)[ \t]*=[ \t]*")
_ESCAPES: Final = {"\\": "\\", '"': '"', "b": "\b", "n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One `key = value`.

    Attributes:
        name: "section.key"; the key alone before the first section.
        value: The value, without quotes.
        line: Number of its first line, counted from 1.
    """

    name: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class UnreadableLine:
    """A line that is ignored.

    Attributes:
        text: The line, without the white space around it.
        why: The reason, for people.
        line: Its number, counted from 1.
    """

    text: str
    why: str
    line: int


def read_lines(text: str) -> Iterator[Setting | UnreadableLine]:
    """Read a file, line by line. A byte order mark at its beginning is skipped."""
    section = ""
    lines = iter(enumerate(_BREAK.split(text.removeprefix("\ufeff")), start=1))
    for number, raw in lines:
        line = raw.lstrip(" \t")
        if not line or line.startswith("#"):
            continue
        if match := _SECTION.fullmatch(line):
            section = f"{match[1]}."
        elif match := _KEY.match(line):
            try:
                value = _value(line[match.end() :], lines)
            except ValueError as fault:
                yield UnreadableLine(line.rstrip(" \t"), str(fault), number)
            else:
                yield Setting(section + match[1], value, number)
        else:
            yield UnreadableLine(line.rstrip(" \t"), "neither [section] nor key=value", number)


def _value(rest: str, following: Iterator[tuple[int, str]]) -> str:
    """Read a value.

    Args:
        rest: The line after the equals sign.
        following: The lines after it, of which those are taken that continue the value.

    Raises:
        ValueError: An unknown escape, or a quote that is not closed; the text says which.
    """
    read: list[str] = []
    kept = at = 0
    quoted = False
    while at < len(rest):
        char = rest[at]
        at += 1
        if char == "#" and not quoted:
            break
        if char == '"':
            quoted = not quoted
        elif char == "\\" and at == len(rest):
            _, rest = next(following, (0, ""))
            at = 0
        elif char == "\\":
            if rest[at] not in _ESCAPES:
                raise ValueError(f"the escape \\{rest[at]} is not known")
            read.append(_ESCAPES[rest[at]])
            at += 1
        else:
            read.append(char)
        if char not in " \t":
            kept = len(read)
    if quoted:
        raise ValueError("a quote is not closed")
    return "".join(read[:kept])

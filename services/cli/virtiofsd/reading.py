"""The reader of virtiofsd's options: what they set, what the log says of them, what is refused.

Owns the syntax of both forms, `--name=value` and `-o name=value,…`. What an option means is in the
table (options.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from services.cli.virtiofsd.options import ROWS, Row, Sets, Verdict
from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCUMENT: Final = "docs/virtiofsd.md"

_ITEM: Final = re.compile(r"(?:[^,]|,,)+")
"""libvirt doubles a comma in a value (virQEMUBuildBufferEscapeComma)."""


class _Choice(NamedTuple):
    """One value that an option may have: None without one, "<what>" for any."""

    value: str | None
    row: Row

    def fits(self, value: str | None) -> bool:
        if self.value is None or value is None:
            return self.value is value
        if not self.value.startswith("<"):
            return self.value == value
        return not self.row.pattern or re.fullmatch(self.row.pattern, value) is not None


@dataclass
class Given:
    """What the options of virtiofsd on a command line set.

    Attributes:
        share: Options of the share, in the form of `--options`.
        settings: The value of everything else that is set.
        notes: Lines for the log, of options that are accepted.
    """

    share: list[str] = field(default_factory=list)
    settings: dict[Sets, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _choices() -> dict[str, list[_Choice]]:
    found: dict[str, list[_Choice]] = {}
    for row in ROWS:
        for form in dict.fromkeys((*row.rust, *row.c)):
            name, has_value, value = form.partition("=")
            found.setdefault(name, []).append(_Choice(value if has_value else None, row))
    return found


_CHOICES: Final = _choices()


def read(arguments: Sequence[str]) -> Given:
    """Read options of virtiofsd, in both forms.

    Raises:
        InvalidArgumentError: OPTION_UNKNOWN for one that no virtiofsd has, OPTION_SYNTAX,
            OPTION_VALUE, and OPTION_REFUSED for one that asks for what the device does not do.
    """
    given = Given()
    for name, value in _split(arguments):
        if name != "-o":
            take(given, name, value)
            continue
        for item in _ITEM.findall(value or ""):
            key, has_value, word = item.replace(",,", ",").partition("=")
            take(given, f"-o {key}", word if has_value else None)
    return given


def take(given: Given, name: str, value: str | None) -> None:
    """Apply one option.

    Raises:
        InvalidArgumentError: See `read`.
    """
    said = name if value is None else f"{name}={value}"
    choices = _CHOICES.get(name)
    if choices is None:
        raise InvalidArgumentError(
            "OPTION_UNKNOWN",
            f"{said}: neither this device nor virtiofsd has such an option; leave it out "
            f"({DOCUMENT} has all)",
            option=name,
        )
    row = next((choice.row for choice in choices if choice.fits(value)), None)
    if row is None:
        known = ", ".join(name if each is None else f"{name}={each}" for each, _ in choices)
        raise InvalidArgumentError(
            "OPTION_VALUE", f"{said}: write {known}", option=name, value=value or ""
        )
    if row.verdict is Verdict.REFUSED:
        raise InvalidArgumentError(
            "OPTION_REFUSED", f"{said}: {row.why} ({DOCUMENT} has all options)", option=name
        )
    if row.verdict is Verdict.ACCEPTED:
        given.notes.append(f"{said} is accepted: {row.why}")
    if row.sets is Sets.SHARE:
        given.share.append(row.to)
    elif row.sets is not Sets.NOTHING:
        given.settings[row.sets] = row.to or value or ""


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each option with its value.

    A value that an option must have may be the next argument; one that it may have is behind "=".
    """
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            raise InvalidArgumentError(
                "OPTION_SYNTAX", f"{argument!r} is no option; the command takes options only"
            )
        name, has_value, value = argument.partition("=")
        choices = _CHOICES.get(name, ())
        may_be_alone = not choices or any(each is None for each, _ in choices)
        if has_value or (may_be_alone and name != "-o"):
            yield name, value if has_value else None
            continue
        following = next(rest, None)
        if following is None:
            raise InvalidArgumentError("OPTION_SYNTAX", f"{name} needs a value")
        yield name, following

"""A case of the tables, played on a share and on a plain directory."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.actor import Actor
    from tests.conformance.conftest import Place
    from tests.conformance.tables import Case

_numbers = itertools.count()


def compare(case: Case, place: Place, actors: dict[str, Actor]) -> None:
    """Assert that all answers are the same, and those of the table, and so is what is left."""
    name = f"case-{next(_numbers)}"
    expected = _act(case, place.plain / name, place.plain / name, actors)
    found = _act(case, place.shared / name, place.mounted / name, actors)
    wrong = [
        f"line {line.number}: {line.who}: {b' '.join(line.words)[:200]!r}: "
        f"{share!r}; on the host {host!r}; the table wants {line.expected or 'success'!r}"
        for line, host, share in zip(case.lines, expected, found, strict=False)
        if share != host or not _fits(share, line.expected)
    ]
    assert not wrong, "\n".join(wrong)
    root = actors["root"]
    assert root.call("tree", str(place.mounted / name)) == root.call(
        "tree", str(place.plain / name)
    )
    # What the guest believes is what the host has, down to times and inode numbers.
    seen = root.call("exactly", str(place.mounted / name))
    assert seen == root.call("exactly", str(place.shared / name))


def _fits(answer: str, expected: str) -> bool:
    if expected in ("", "*"):
        return bool(expected) or answer not in errno.errorcode.values()
    return answer == expected


def _act(case: Case, made: Path, directory: Path, actors: dict[str, Actor]) -> list[str]:
    made.mkdir()
    made.chmod(0o777)
    for actor in actors.values():
        actor.enter(directory)
    return [actors[line.who].call(*line.words) for line in case.lines]

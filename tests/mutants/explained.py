"""The survivors that docs/mutants.md explains.

Owns the form of its tables. A row names a mutant by module, function and changed code, never by
line, so that it stays true when code moves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.mutants.survivors import Survivor

_HEADING: Final = re.compile(r"#+ `(services/\S+\.py)`")
_ROW: Final = re.compile(r"\| `([\w.]+)` \| (?:`(.+)`|(any)) \| (\S.*) \|")


@dataclass(frozen=True, slots=True)
class Explanation:
    """The reason why a mutant, or every mutant of a function, survives.

    Attributes:
        change: The change, in the form of Survivor.change; None: every mutant of the function.
    """

    path: str
    function: str
    change: str | None
    why: str

    def covers(self, survivor: Survivor) -> bool:
        """Whether this explains that survivor."""
        return (self.path, self.function) == (survivor.path, survivor.function) and (
            self.change in (None, survivor.change)
        )


def read_explanations(text: str) -> list[Explanation]:
    """Read the tables under headings that name a module.

    Raises:
        ValueError: A row under such a heading does not have the form of one.
    """
    found: list[Explanation] = []
    path = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = _HEADING.fullmatch(line)
            path = heading[1] if heading else ""
        elif path and line.startswith("| `"):
            row = _ROW.fullmatch(line)
            if row is None:
                raise ValueError(f"a row of {path} is not | `function` | `change` | why |: {line}")
            change = row[2].replace(r"\|", "|") if row[2] else None
            found.append(Explanation(path, row[1], change, row[4]))
    return found


def as_row(survivor: Survivor) -> str:
    """Write the row for a survivor, with a gap for the explanation."""
    change = survivor.change.replace("|", r"\|")
    return f"| `{survivor.function}` | `{change}` | … |"

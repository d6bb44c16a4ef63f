"""Where output goes: results to stdout, everything else to stderr.

Colour follows the terminal and NO_COLOR, as rich reads them. A pipe has no width, so tables are
given room enough there not to be cut. Must not know what is printed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH: Final = 240
"""Columns of a table that goes to a pipe, unless COLUMNS says otherwise."""


def printable(text: str) -> str:
    """Escape what is not printable: guests choose names, and a terminal obeys what it is sent."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def _console(*, stderr: bool) -> Console:
    # Imported when something is printed: a device of its own prints nothing, and starts sooner.
    from rich.console import Console

    class BreakingConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to the root group, as of every other write; rich would exit with 1."""
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return BreakingConsole(stderr=stderr, width=fixed, highlight=False, soft_wrap=False)


def out() -> Console:
    """Give the console for results; made anew so that it follows a redirected stdout."""
    return _console(stderr=False)


def err() -> Console:
    """Give the console for everything that is not a result."""
    return _console(stderr=True)


def say(text: str) -> None:
    """Print one line for people on stderr."""
    err().print(printable(text), markup=False, soft_wrap=True)


def fail(text: str) -> None:
    """Print the one line that says why a command ends with an error."""
    console = err()
    console.print("error:", style="bold red", end=" ")
    console.print(printable(text), markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document on stdout, on one line when it goes to a program."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()

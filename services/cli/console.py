"""The output of commands: results to stdout, everything else to stderr.

Colour follows the terminal and NO_COLOR, as rich interprets them. A pipe has no width, so tables
get a width there with which no cell is cut.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH: Final = 240
"""Columns of a table in a pipe, unless COLUMNS is set."""


def printable(text: str) -> str:
    """Escape unprintable characters: guests choose names, and terminals obey escape sequences."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(text: str) -> str:
    """Escape as `printable` does, and line feeds as well."""
    return printable(text).replace("\n", "\\n")


def _console(*, stderr: bool) -> Console:
    # Imported when something is printed: `porthole device` prints nothing, and so starts faster.
    from rich.console import Console

    class BreakingConsole(Console):
        def on_broken_pipe(self) -> None:
            """Raise, for the root group in main.py to handle; rich would exit with 1."""
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    # Rules of extended attributes have ":ok:" in them, which is no picture.
    return BreakingConsole(
        stderr=stderr, width=fixed, highlight=False, soft_wrap=False, emoji=False
    )


def out() -> Console:
    """Return the console for results. It is made anew, so that it follows a redirected stdout."""
    return _console(stderr=False)


def err() -> Console:
    """Return the console for everything else."""
    return _console(stderr=True)


def say(text: str) -> None:
    """Print one line on stderr, for people."""
    err().print(printable(text), markup=False, soft_wrap=True)


def fail(text: str) -> None:
    """Print the line with the error that ends a command."""
    console = err()
    console.print("error:", style="bold red", end=" ")
    console.print(printable(text), markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document on stdout; on one line unless stdout is a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()

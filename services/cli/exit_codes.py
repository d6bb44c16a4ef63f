"""The exit codes of `porthole`, and the code of each error; README has the same table.

Must not know commands: they return or raise, and the root group in main.py turns that into a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.handshake.errors import PortholeError

OK: Final = 0
"""Done; a check found everything valid."""

NEGATIVE: Final = 1
"""The command ran, and its answer is no: an invalid handshake, a failed comparison."""

USAGE: Final = 2
"""The command line is wrong, or an input cannot be read."""

REFUSED: Final = 3
"""A service refused the request; the reason is on stderr."""

UNREACHABLE: Final = 4
"""A service cannot be reached, could not be started, or did not answer in time."""

INTERRUPTED: Final = 130
"""Ended by Ctrl-C: 128 + SIGINT, as in shells."""

_UNREACHABLE_KINDS: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


def exit_code_for(error: PortholeError) -> int:
    """Return the exit code of an error that ended a command."""
    return UNREACHABLE if error.kind in _UNREACHABLE_KINDS else REFUSED

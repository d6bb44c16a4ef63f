"""The caller's terminal while a command in the guest has it: raw, and as before afterwards.

Owns the terminal's modes and its size. The guest's terminal does what this one does otherwise:
echo, editing of lines, and Ctrl-C, which reaches the command as a byte.
"""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from typing import TYPE_CHECKING, Any, Final

from services.cli.requests import WindowSize

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDARD_FDS: Final = (0, 1, 2)

ESCAPE: Final = 0x1D
"""Ctrl-]: three of them end a command that nothing else ends, as in systemd-nspawn."""

ESCAPES: Final = 3
ESCAPE_TIME_S: Final = 1.0
"""Longest time from the first to the last."""


class Terminal:
    """A terminal.

    Args:
        fd: A descriptor of it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    @property
    def size(self) -> WindowSize:
        """Its size; 0 and 0 where it has none, or is gone."""
        try:
            columns, rows = os.get_terminal_size(self._fd)
        except OSError:
            return WindowSize(0, 0)
        return WindowSize(rows, columns)

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Have it raw in the body.

        Raises:
            OSError: It is gone.
        """
        self.make_raw()
        try:
            yield
        finally:
            self.restore()

    def make_raw(self) -> None:
        """Make it raw; what was typed already is kept.

        Raises:
            OSError: It is gone.
        """
        try:
            if self._before is None:
                self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSANOW)
        except termios.error as error:
            raise OSError(*error.args) from None

    def restore(self) -> None:
        """Give it the modes that it had. It does not wait: a terminal may be stuck, or be gone."""
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)


class Escapes:
    """Looks for the keys that end a command."""

    def __init__(self) -> None:
        self._times_s: list[float] = []

    def complete(self, data: bytes, now_s: float) -> bool:
        """Take what was typed; return whether the last key that is needed is in it.

        Args:
            data: The bytes, which are input of the command as well.
            now_s: The time, of any clock that does not go back.
        """
        for byte in data:
            if byte != ESCAPE:
                self._times_s.clear()
                continue
            self._times_s.append(now_s)
            first, *_ = self._times_s = self._times_s[-ESCAPES:]
            if len(self._times_s) == ESCAPES and now_s - first <= ESCAPE_TIME_S:
                return True
        return False


def callers_terminal() -> Terminal | None:
    """Return the caller's terminal, if a command can have it.

    It can when all three standard streams are terminals. Otherwise the command gets pipes, so that
    its streams stay apart.
    """
    return Terminal(0) if all(os.isatty(fd) for fd in STANDARD_FDS) else None

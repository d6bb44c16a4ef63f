"""A log of output that a guest controls: a file of bounded size, and its last lines for errors.

Owns the bounds, also of what an error quotes of any log. Must not know who writes.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

FILE_LIMIT_BYTES: Final = 1 << 20
"""Largest size of the file. When it is reached, the file becomes `<name>.1`, and a new one begins;
so at most twice as much is kept, the newest part always."""

TAIL_BYTES: Final = 8 << 10
"""Bytes of the end that are kept in memory."""

QUOTED_LINES: Final = 8
"""Most lines that an error quotes."""

QUOTED_CHARACTERS: Final = 800
"""Most characters that an error quotes."""


class BoundedLog:
    """The output of one process or console.

    Args:
        path: The file. It is made by the first write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._size_bytes = 0
        self._tail = b""
        self._warned = False

    def write(self, data: bytes) -> None:
        """Append bytes. A file that cannot be written costs the file, not the last lines.

        That is logged once: the guest decides how often it writes.
        """
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        try:
            self._append(data[-FILE_LIMIT_BYTES:])
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("%s is not written: %s", self._path, error.strerror)

    def last_lines(self, lines: int = QUOTED_LINES) -> str:
        """Return the last lines as an error quotes them; empty: there are none."""
        return quotation(self._tail, lines)

    def line_with(self, words: str) -> str:
        """Return the last line near the end that has these words; empty: there is none."""
        return next((line for line in reversed(_lines(self._tail)) if words in line), "")

    def close(self) -> None:
        """Close the file; the last lines stay."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is not None and self._size_bytes + len(data) > FILE_LIMIT_BYTES:
            self.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self._path, flags, 0o600)
            self._size_bytes = 0
        while data:
            written = os.write(self._file, data)
            self._size_bytes += written
            data = data[written:]


def quotation(tail: bytes, lines: int = QUOTED_LINES) -> str:
    """Return the last lines, separated by " | ", in characters that a terminal may show."""
    quoted = " | ".join(_lines(tail)[-lines:])
    return quoted if len(quoted) <= QUOTED_CHARACTERS else f"…{quoted[-QUOTED_CHARACTERS:]}"


def _lines(tail: bytes) -> list[str]:
    text = tail.decode(errors="replace").replace("\r", "\n")
    shown = ("".join(c if c.isprintable() else " " for c in line) for line in text.split("\n"))
    return [line.strip() for line in shown if line.strip()]

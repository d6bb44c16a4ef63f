"""How many nodes or open files one mount may have.

The mounts of all guests share the memory and the descriptors of the process, so no mount gets more
than it leaves to the others. native/bound.c has the same rule. Must not know what is counted.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sized


class Total:
    """What is counted of all mounts together; usable from any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tables: weakref.WeakSet[Sized] = weakref.WeakSet()

    def include(self, table: Sized) -> None:
        """Count what a table has, as long as it is referenced."""
        with self._mutex:
            self._tables.add(table)

    def __len__(self) -> int:
        with self._mutex:
            return sum(map(len, self._tables))


class Bound:
    """The bound of one mount."""

    def __init__(self, most: int, most_of_all: int, total: Total, *, alone: bool) -> None:
        """Note the bounds.

        Args:
            most: Of the mount.
            most_of_all: Of all mounts of the process.
            total: Counts them.
            alone: Whether no other guest has mounts in the process.
        """
        self._most: Final = most
        self._most_of_all: Final = most_of_all
        self._total: Final = total
        self._alone: Final = alone

    def limit(self, mine: int) -> int:
        """Return how many the mount may have as things are, when it has `mine`."""
        left = max(self._most_of_all - len(self._total), 0)
        # As many as make what is left no less than what it has.
        more = left if self._alone else max(left - mine + 1, 0) // 2
        return min(self._most, mine + more)

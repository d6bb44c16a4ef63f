"""How many nodes or open files one mount may have.

The mounts of all guests share the memory and the descriptors of the process, so no mount gets more
than it leaves to the others. native/bound.c has the same rule. Must not know what is counted.
"""

from __future__ import annotations

import threading
from typing import Final


class Total:
    """The count of all mounts together; usable from any thread.

    Attributes:
        count: How many there are.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mutex = threading.RLock()  # a bound may be collected while another one counts

    def add(self, number: int) -> None:
        """Count some more, or less if `number` is negative."""
        with self._mutex:
            self.count += number


class Bound:
    """The bound of one mount, whose owner holds a mutex for `add` and `take`."""

    def __init__(self, most: int, most_of_all: int, total: Total, *, alone: bool) -> None:
        """Begin with none.

        Args:
            most: Of the mount.
            most_of_all: Of all mounts of the process.
            total: Counts them, as long as this is referenced.
            alone: Whether no other guest has mounts in the process.
        """
        self._most: Final = most
        self._most_of_all: Final = most_of_all
        self._total: Final = total
        self._alone: Final = alone
        self._count = 0

    def __del__(self) -> None:
        """Leave what the mount had to the others."""
        self._total.add(-self._count)

    def add(self) -> None:
        """Count one more."""
        self._count += 1
        self._total.add(1)

    def take(self) -> None:
        """Count one less."""
        self._count -= 1
        self._total.add(-1)

    def has_room(self) -> bool:
        """Return whether the mount may have one more."""
        left = self._most_of_all - self._total.count
        return self._count < self._most and (0 if self._alone else self._count) < left

    @property
    def limit(self) -> int:
        """How many the mount may have as things are."""
        left = max(self._most_of_all - self._total.count, 0)
        # As many as make what is left no less than what it has.
        more = left if self._alone else max(left - self._count + 1, 0) // 2
        return min(self._most, self._count + more)

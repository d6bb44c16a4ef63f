"""The cases: each is one workload, and the matrix lists the cases of a run.

Owns the matrix. Must not know devices or how a case is run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB: Final = 1 << 10
MIB: Final = 1 << 20
WORKING_SET_BYTES: Final = 64 * MIB
UNCACHED_SPAN_BYTES: Final = 32 * MIB
"""Memory that uncached buffers rotate over: more than the 512 windows that stay mapped."""


class Medium(Enum):
    """The file system that the shared directory is on."""

    TMPFS = "tmpfs"
    DISK = "disk"


class Size(Enum):
    """The part of the matrix that a run measures."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"


class Kind(Enum):
    """The group of goals (verdicts.py) that a case counts towards."""

    SMALL = "small"
    LARGE = "large"
    UNCACHED = "uncached"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload.

    Attributes:
        operation: Its name on the front-end's command line.
        block_bytes: Bytes per READ or WRITE; for other operations, per READDIRPLUS reply.
        depth: Operations in flight on each queue.
        queues: Request queues; a device that has fewer uses all of its own.
        sequential: Whether file offsets are sequential; otherwise they are random.
        scattered: Whether a buffer is 4 KiB pages that are not adjacent, or contiguous memory.
        polling: Whether the driver polls for replies; otherwise it sleeps until an interrupt.
        medium: The file system that the shared directory is on.
        files: Number of files in the directory that the case works on.
        span_bytes: Memory that the buffers rotate over; 0: only as many buffers as the depth needs.
        memory_kinds: Whether the case compares our device's ways to reach guest memory.
    """

    operation: str
    block_bytes: int = 4 * KIB
    depth: int = 1
    queues: int = 1
    sequential: bool = False
    scattered: bool = True
    polling: bool = False
    medium: Medium = Medium.TMPFS
    files: int = 1000
    span_bytes: int = 0
    memory_kinds: bool = False

    @property
    def moves_data(self) -> bool:
        """Whether it reads or writes a file's data."""
        return self.operation in ("read", "write")

    @property
    def kind(self) -> Kind:
        """The group of goals that it counts towards."""
        if self.span_bytes:
            return Kind.UNCACHED
        if self.memory_kinds:
            return Kind.MEMORY
        if self.moves_data and self.block_bytes > 4 * KIB:
            return Kind.LARGE
        return Kind.SMALL

    @property
    def name(self) -> str:
        """A short description, unique in the matrix."""
        words = []
        if self.moves_data:
            order = "sequential" if self.sequential else "random"
            words += [_size(self.block_bytes), order, self.operation]
        elif self.operation == "list":
            words.append(f"READDIRPLUS of {self.files:,}")
        else:
            words.append(_NAMES[self.operation])
        words.append(f"QD{self.depth}")
        if self.queues > 1:
            words.append(f"{self.queues} queues")
        if self.moves_data and not self.scattered:
            words.append("contiguous")
        if self.polling:
            words.append("polling driver")
        if self.span_bytes:
            words.append("uncached buffers")
        if self.memory_kinds:
            words.append("kinds of memory")
        if self.medium is not Medium.TMPFS:
            words.append(f"on {self.medium.value}")
        return ", ".join(
            (" ".join(words[: 2 + 2 * self.moves_data]), *words[2 + 2 * self.moves_data :])
        )


_NAMES: Final = {
    "getattr": "GETATTR",
    "lookup": "LOOKUP",
    "open": "OPEN+RELEASE",
    "create": "CREATE+UNLINK",
}


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def matrix(size: Size) -> list[Case]:
    """List the cases of a run, without repetition, in the order in which they are run."""
    cases = {Size.SMOKE: _smoke, Size.QUICK: _quick, Size.FULL: _full}[size]()
    return list(dict.fromkeys(cases))


def _smoke() -> Iterator[Case]:
    for operation in ("read", "write", "lookup", "create"):
        yield Case(operation=operation, depth=4)
    yield Case(operation="read", block_bytes=MIB, sequential=True, depth=2)
    yield Case(operation="list")


def _quick() -> Iterator[Case]:
    for operation, depth in itertools.product(("read", "write"), (1, 16)):
        yield Case(operation=operation, depth=depth)
    for operation, block_bytes in itertools.product(("read", "write"), (128 * KIB, MIB)):
        yield Case(operation=operation, block_bytes=block_bytes, depth=8, sequential=True)
    for operation in _NAMES:
        yield Case(operation=operation, depth=16)
    yield Case(operation="list")
    yield Case(operation="read", depth=16, span_bytes=UNCACHED_SPAN_BYTES)
    yield Case(operation="read", depth=16, memory_kinds=True)


def _full() -> Iterator[Case]:
    for medium in Medium:
        for operation, depth in itertools.product(("read", "write"), (1, 16, 64)):
            yield Case(operation=operation, depth=depth, medium=medium)
        for operation, block_bytes, depth in itertools.product(
            ("read", "write"), (128 * KIB, MIB), (1, 8)
        ):
            yield Case(
                operation=operation,
                block_bytes=block_bytes,
                depth=depth,
                sequential=True,
                medium=medium,
            )
        for operation, depth in itertools.product(_NAMES, (1, 16)):
            yield Case(operation=operation, depth=depth, medium=medium)
        for files in (1000, 100_000):
            yield Case(operation="list", files=files, medium=medium)
    for operation, depth in itertools.product(("read", "write"), (1, 16)):
        yield Case(operation=operation, depth=depth, polling=True)
    for operation, queues in itertools.product(("read", "write", "lookup"), (2, 4)):
        yield Case(operation=operation, depth=16, queues=queues)
    for operation, block_bytes in itertools.product(("read", "write"), (128 * KIB, MIB)):
        yield Case(
            operation=operation, block_bytes=block_bytes, depth=8, sequential=True, scattered=False
        )
    for operation, depth in itertools.product(("read", "write"), (1, 16)):
        yield Case(operation=operation, depth=depth, span_bytes=UNCACHED_SPAN_BYTES)
    for operation in ("read", "write"):
        yield Case(operation=operation, depth=16, memory_kinds=True)
        yield Case(
            operation=operation, block_bytes=MIB, depth=8, sequential=True, memory_kinds=True
        )

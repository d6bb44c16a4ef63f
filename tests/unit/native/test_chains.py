"""A chain that breaks a rule is left in the ring as if nobody had looked at it, for Python."""

from __future__ import annotations

import pytest

from services.devicehost import fastpath
from services.devicehost.fastpath import Outcome
from services.wire.virtio_ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from tests.unit.native.loop import GPA, RAM_BYTES, SIZE, TABLE, Loop

pytestmark = pytest.mark.skipif(
    fastpath.library is None, reason="the native fast path was not built"
)

N, W, IND = DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT
DATA = GPA + 0x8000
INDIRECT = GPA + TABLE
MOST = 1024
"""Entries of an indirect table, in a ring that is shorter."""

Desc = tuple[int, int, int, int]


def table(count: int, length: int, flags: int = 0) -> list[Desc]:
    """One chain through a table."""
    return [(DATA, length, flags | (N if i + 1 < count else 0), i + 1) for i in range(count)]


BROKEN: dict[str, tuple[list[Desc], list[Desc]]] = {
    "an indirect table in another": ([(INDIRECT, 16, IND, 0)], [(INDIRECT, 16, IND, 0)]),
    "an indirect table that goes on": ([(INDIRECT, 16, IND | N, 1), (DATA, 8, 0, 0)], table(1, 8)),
    "an empty indirect table": ([(INDIRECT, 0, IND, 0)], table(1, 8)),
    "half a descriptor": ([(INDIRECT, 24, IND, 0)], table(1, 8)),
    "an indirect table that is too long": ([(INDIRECT, 16 * (MOST + 1), IND, 0)], table(1, 8)),
    "an indirect table outside of memory": ([(GPA + RAM_BYTES - 8, 16, IND, 0)], []),
    "a loop": ([(DATA, 8, N, 1), (DATA, 8, N, 0)], []),
    "a loop in an indirect table": ([(INDIRECT, 32, IND, 0)], [(DATA, 8, N, 1), (DATA, 8, N, 0)]),
    "a link out of the ring": ([(DATA, 8, N, SIZE)], []),
    "a link out of an indirect table": ([(INDIRECT, 16, IND, 0)], [(DATA, 8, N, 1)]),
    "readable after writable": ([(DATA, 8, N | W, 1), (DATA, 8, 0, 0)], []),
    "an empty buffer": ([(DATA, 0, 0, 0)], []),
    "a byte too many": ([(GPA + RAM_BYTES - 8, 9, 0, 0)], []),
    "a byte too early": ([(GPA - 1, 8, 0, 0)], []),
    "an address that overflows": ([((1 << 64) - 4, 8, 0, 0)], []),
    "more than 4 GiB": ([(INDIRECT, 16 * MOST, IND, 0)], table(MOST, 8 << 20)),
    "more to read than a system call takes": (
        [(DATA, 8, N, 1), (INDIRECT, 16 * MOST, IND, 0)],
        table(MOST, 8),
    ),
    "more to read than a system call takes, and something to write": (
        [(DATA, 8, N, 1), (DATA, 8, N, 2), (INDIRECT, 16 * MOST, IND, 0)],
        [*table(MOST, 8)[:-1], (DATA, 8, W, 0)],
    ),
    "more to write than a system call takes": (
        [(DATA, 8, N | W, 1), (INDIRECT, 16 * MOST, IND, 0)],
        table(MOST, 8, W),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_chain_is_left(rule: str) -> None:
    ring, entries = BROKEN[rule]
    with Loop() as loop:
        loop.describe(0, *ring)
        loop.describe(TABLE, *entries)
        loop.offer()
        assert not loop.take()
        assert loop.serve() == Outcome.PYTHON
        assert (loop.state.next_avail, loop.used, loop.counted) == (0, 0, (0, 0, 0))


@pytest.mark.parametrize(
    ("ring", "entries"),
    [
        ([(DATA, 8, N, 1), (INDIRECT, 16 * (MOST - 1), IND, 0)], table(MOST - 1, 8)),
        ([(DATA, 8, N | W, 1), (INDIRECT, 16 * (MOST - 1), IND, 0)], table(MOST - 1, 8, W)),
        ([(INDIRECT, 16 * 511, IND, 0)], table(511, 8 << 20)),
        ([(GPA + RAM_BYTES - 8, 8, 0, 0)], []),
        ([(DATA, 8, N, i + 1) for i in range(SIZE - 1)] + [(DATA, 8, W, 0)], []),
    ],
    ids=["readable", "writable", "bytes", "the end of memory", "the whole ring"],
)
def test_a_chain_at_a_limit_is_taken(ring: list[Desc], entries: list[Desc]) -> None:
    with Loop() as loop:
        loop.describe(0, *ring)
        loop.describe(TABLE, *entries)
        loop.offer()
        assert loop.take()


def test_an_indirect_table_must_have_been_agreed_on() -> None:
    for agreed in (True, False):
        with Loop(indirect=agreed) as loop:
            loop.describe(0, (INDIRECT, 16, IND, 0))
            loop.describe(TABLE, *table(1, 8))
            loop.offer()
            assert loop.take() is agreed


def test_more_chains_than_the_ring_has_are_not_looked_at() -> None:
    with Loop() as loop:
        loop.describe(0, (DATA, 8, 0, 0))
        for _ in range(SIZE + 1):
            loop.offer()
        assert loop.serve() == Outcome.PYTHON
        assert (loop.state.next_avail, loop.used, loop.counted) == (0, 0, (0, 0, 0))

"""Episodes of one bound: when one is reported, and when the bound is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.devicehost.accounting import Bound
from services.handshake.exhaustion import Exhaustion

if TYPE_CHECKING:
    from collections.abc import Callable


class Pool:
    def __init__(self, total: int) -> None:
        self.used = 0
        self.reported: list[Exhaustion] = []
        self.looks: list[Callable[[], None]] = []
        self.bound = Bound("things", total, lambda: self.used, self.looks.append)

    def hit(self, used: int) -> None:
        self.used = used
        self.bound.hit(self.reported.append)

    def look(self, used: int) -> bool:
        self.used = used
        self.bound.look()
        return self.bound.exhausted


def test_an_episode_is_reported_once_however_often_it_is_hit() -> None:
    pool = Pool(8)
    for used in (8, 8, 7):
        pool.hit(used)
    assert pool.reported == [Exhaustion("things", 8, 8)]
    assert pool.bound.exhausted


def test_it_ends_when_use_is_clearly_below_and_nobody_was_refused_meanwhile() -> None:
    pool = Pool(8)
    pool.hit(8)
    assert pool.look(0), "somebody was refused since the last look"
    assert pool.look(7), "not clearly below"
    assert not pool.look(6)
    pool.hit(8)
    assert [each.used for each in pool.reported] == [8, 8]


@pytest.mark.parametrize(("total", "eased"), [(0, 0), (1, 0), (2, 1), (4, 3), (512, 384)])
def test_clearly_below_is_three_quarters(total: int, eased: int) -> None:
    pool = Pool(total)
    pool.hit(total)
    pool.look(total)
    assert pool.look(eased + 1)
    assert not pool.look(eased)


def test_looks_are_asked_for_as_long_as_it_lasts_and_no_longer() -> None:
    pool = Pool(4)
    assert pool.looks == []
    pool.hit(4)
    pool.hit(4)
    assert len(pool.looks) == 1
    for used, more in ((4, 1), (4, 1), (0, 0)):
        look = pool.looks.pop()
        pool.used = used
        look()
        assert len(pool.looks) == more
    assert not pool.bound.exhausted


def test_whether_an_episode_lasts_is_yes_or_no() -> None:
    pool = Pool(8)
    lasts = [pool.bound.exhausted]
    pool.hit(8)
    lasts.append(pool.bound.exhausted)
    lasts += [pool.look(0), pool.look(0)]
    assert lasts == [False, True, True, False]

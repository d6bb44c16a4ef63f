"""Episodes: when one begins and when it ends; and what is said of an exhaustion."""

from __future__ import annotations

import pytest

from services.handshake.exhaustion import REMEDIES, Episode, Exhaustion, Resource


def test_an_episode_begins_once_however_often_it_is_hit() -> None:
    episode = Episode()
    assert episode.lasts is False
    assert [episode.hit() for _ in range(3)] == [True, False, False]
    assert episode.lasts is True


def test_it_ends_when_use_is_clearly_below_and_nobody_was_refused_meanwhile() -> None:
    episode = Episode()
    episode.hit()
    assert episode.look(0, 8), "somebody was refused since the last look"
    assert episode.look(7, 8), "not clearly below"
    episode.hit()
    assert episode.look(0, 8), "somebody was refused again"
    assert not episode.look(6, 8)
    assert episode.lasts is False
    assert episode.hit()


@pytest.mark.parametrize(("total", "eased"), [(0, 0), (1, 0), (2, 1), (4, 3), (512, 384)])
def test_clearly_below_is_three_quarters(total: int, eased: int) -> None:
    episode = Episode()
    episode.hit()
    episode.look(total, total)
    assert episode.look(eased + 1, total)
    assert not episode.look(eased, total)


def test_every_resource_says_what_helps() -> None:
    assert REMEDIES.keys() == set(Resource)
    text = str(Exhaustion(Resource.HANDLES, 10, 10))
    assert text.startswith("handles exhausted: 10 of 10 in use; ")
    assert "RLIMIT_NOFILE" in text
    assert str(Exhaustion("newer", 1, 2)) == "newer exhausted: 1 of 2 in use"


@pytest.mark.parametrize(("used", "said"), [(538, True), (1024, False)])
def test_a_pool_with_free_slots_says_why_they_do_not_do(used: int, said: bool) -> None:
    text = str(Exhaustion(Resource.BOUNCE_POOL, used, 1024))
    assert text.startswith(f"bounce_pool exhausted: {used} of 1024 in use")
    assert ("not side by side" in text) is said
    assert "hv_pci_swiotlb=" in text

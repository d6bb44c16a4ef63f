"""The bounds of one device: use, episodes and reports."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from services.devicehost.accounting import bounds as module
from services.devicehost.accounting.bounds import Bound, Bounds, Usage

if TYPE_CHECKING:
    import pytest

    from services.handshake.exhaustion import Exhaustion


def wait_until_over(bounds: Bounds) -> None:
    end = time.monotonic() + 10
    while bounds.is_exhausted("things"):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_total_of_what_is_not_bounded_yet_is_not_known() -> None:
    bounds = Bounds()
    assert bounds.total("things") is None
    bounds.add(Bound("things", 7, lambda: 0))
    assert bounds.total("things") == 7


def test_every_episode_is_counted_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.005)
    bounds = Bounds()
    reported: list[Exhaustion] = []
    bounds.on_exhausted = reported.append
    bounds.add(Bound("things", 7, lambda: 2))
    for episode in (1, 2):
        bounds.hit("things")
        wait_until_over(bounds)
        assert bounds.exhaustions == episode
        assert bounds.usage() == (Usage("things", 2, 7, episode),)
    assert [each.used for each in reported] == [2, 2]


def test_an_episode_that_lasts_does_not_keep_the_process_alive() -> None:
    bounds = Bounds()
    bounds.add(Bound("things", 7, lambda: 7))
    before = set(threading.enumerate())
    bounds.hit("things")
    (looks,) = set(threading.enumerate()) - before
    assert isinstance(looks, threading.Timer)
    assert (looks.name, looks.daemon) == ("exhaustion", True)
    looks.cancel()
    looks.join()


def test_without_threads_the_episode_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refused)
    bounds = Bounds()
    bounds.add(Bound("things", 7, lambda: 0))
    bounds.hit("things")
    assert bounds.is_exhausted("things")

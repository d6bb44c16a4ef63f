"""What the signals of `porthole run` mean, before a command runs, while it does, and afterwards."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from services.cli.run import signals as module
from services.cli.run.signals import Signals


async def get(number: int) -> None:
    """Get a signal, and let the loop see it."""
    os.kill(os.getpid(), number)
    for _ in range(5):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=str
)
async def test_one_that_ends_a_process_ends_the_boot_once(number: int) -> None:
    ends: list[int] = []
    signals = Signals(lambda: ends.append(number))
    with signals.handled():
        await get(signal.SIGUSR1)
        await get(signal.SIGWINCH)
        assert ends == []
        await get(number)
        await get(signal.SIGTERM)
    assert ends == [number]
    assert signals.ended_by == number


async def test_a_command_gets_them_while_it_runs() -> None:
    ends: list[int] = []
    got: list[int] = []
    signals = Signals(lambda: ends.append(1))
    with signals.handled():
        with signals.passed_to(got.append):
            await get(signal.SIGINT)
            await get(signal.SIGUSR1)
            await get(signal.SIGWINCH)
        await get(signal.SIGTERM)
    assert got == [signal.SIGINT, signal.SIGUSR1, signal.SIGWINCH]
    assert ends == []
    assert signals.ended_by is None


async def test_ctrl_z_stops_this_process_while_the_guest_boots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops: list[int] = []
    monkeypatch.setattr(module, "stop_this_process", lambda: stops.append(1))
    with Signals(lambda: None).handled():
        await get(signal.SIGTSTP)
    assert stops == [1]


async def test_under_nohup_the_end_of_the_terminal_is_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals(lambda: None)
        with signals.handled():
            await get(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signals.ended_by is None
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_boot_that_goes_on_after_its_end_gets_no_command() -> None:
    ended = asyncio.Event()
    signals = Signals(ended.set)  # and no more: what was awaited was done just then
    signals.check()
    with signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
        await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            signals.check()
        with pytest.raises(asyncio.CancelledError), signals.passed_to(lambda _: None):
            pytest.fail("it runs")

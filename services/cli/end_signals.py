"""The signals that end a command which runs services, and with them its services in order.

Owns the choice: a terminal that is closed (SIGHUP) is an end like any other, but not under nohup.
"""

from __future__ import annotations

import signal


def end_signals() -> tuple[signal.Signals, ...]:
    """Return the signals; without SIGHUP when whoever started this process has it ignored."""
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hang_up)


def end_like_an_interrupt() -> None:
    """Make the first of the signals but SIGINT do what Ctrl-C does; the others then do nothing.

    asyncio.run, for which this is, cancels its task at an interrupt, and at a second one gives up.
    """
    others = [number for number in end_signals() if number is not signal.SIGINT]

    def interrupt(_number: int, _frame: object) -> None:
        for number in others:
            signal.signal(number, _do_nothing)
        signal.raise_signal(signal.SIGINT)

    for number in others:
        signal.signal(number, interrupt)


def _do_nothing(_number: int, _frame: object) -> None:
    """Ignore a signal, which SIG_IGN would do for programs that are started later, too."""

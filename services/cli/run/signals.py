"""The signals of `porthole run`: what they mean while the guest boots, works and ends.

Owns the handlers, from the first step to the last. While a command runs, it gets the signals.
Before, one that ends a process ends the boot. Afterwards nothing interrupts the end of the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from services.cli.end_signals import end_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HANDLED: Final = (
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTSTP,
)
"""Those that are handled beside the signals that end this process."""


class Signals:
    """The signals of this process.

    Args:
        cancel: Ends the boot.

    Attributes:
        ended_by: The signal that ended the boot; None: none did.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self._take: Callable[[int], None] = self._end_boot
        self._ends: frozenset[int] = frozenset((*end_signals(), signal.SIGQUIT))
        self.ended_by: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals in the body, in a running event loop."""
        loop = asyncio.get_running_loop()
        numbers = sorted({*_HANDLED, *end_signals()})
        for number in numbers:
            loop.add_signal_handler(number, self._hand_on, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def passed_to(self, take: Callable[[int], None]) -> Iterator[None]:
        """Give them to a command in the body; after it they do nothing.

        Raises:
            asyncio.CancelledError: See `check`.
        """
        self.check()
        self._take = take
        try:
            yield
        finally:
            self.ignore()

    def check(self) -> None:
        """End the boot, if a signal has ended it already.

        A task may go on that was cancelled just when what it awaited was done (before Python 3.12
        asyncio.wait_for is such a case), and no signal would end it any more.

        Raises:
            asyncio.CancelledError: A signal has ended the boot.
        """
        if self.ended_by is not None:
            raise asyncio.CancelledError

    def ignore(self) -> None:
        """Let them do nothing from now on."""
        self._take = _do_nothing

    def _hand_on(self, number: int) -> None:
        self._take(number)

    def _end_boot(self, number: int) -> None:
        if number == signal.SIGTSTP:
            stop_this_process()
        elif number in self._ends:
            self.ended_by = number
            self.ignore()
            self._cancel()


def stop_this_process() -> None:
    """Stop this process until somebody continues it, as SIGTSTP does that nobody handles."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _do_nothing(_number: int) -> None:
    """Ignore a signal, which SIG_IGN would do for programs that are started later, too."""

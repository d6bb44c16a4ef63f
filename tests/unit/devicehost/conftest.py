"""The fixtures of all tests of the device host."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost import peer_writes

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_look_outlives_its_test() -> Iterator[None]:
    """End the timers of bounds that were used up: they fire a second later, in another test."""
    yield
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()
            thread.join(10)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let writes to peers be interrupted, as both processes with devices do."""
    before = signal.getsignal(peer_writes.SIGNAL)
    peer_writes.allow_interrupts()
    yield
    signal.signal(peer_writes.SIGNAL, before)

"""The fixture that every test of the device host uses."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

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

"""Waking up a thread that waits in a system call."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.locks.wake import wake

if TYPE_CHECKING:
    import pytest


def test_waking_a_thread_that_has_just_ended_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []

    def kill(ident: int, number: int) -> None:
        sent.append((ident, number))
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    monkeypatch.setattr(signal, "pthread_kill", kill)
    wake(7)
    assert sent == [(7, signal.SIGURG)]

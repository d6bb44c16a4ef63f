"""Keeps the processors busy, so that what a test waits for comes late and in another order.

Owns the processes that do so. Must not know what runs meanwhile.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ENDS_WITH_US: Final = ("setpriv", "--pdeathsig", "TERM")
_STOP_S: Final = 10


def commands(workers: int) -> list[Sequence[str]]:
    """Return what makes this machine busy: stress-ng where it is installed, else Python.

    Args:
        workers: How many processes compute; with stress-ng, as many pairs switch contexts as well.
    """
    if not workers:
        return []
    if shutil.which("stress-ng"):
        stressors = ("--cpu", str(workers), "--switch", str(workers))
        return [("stress-ng", "--quiet", "--timeout", "0", *stressors)]
    return [(sys.executable, "-c", "while True: pass")] * workers


@contextmanager
def load(workers: int) -> Iterator[None]:
    """Keep the machine busy meanwhile; see `commands`."""
    running = [subprocess.Popen([*_ENDS_WITH_US, *command]) for command in commands(workers)]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(_STOP_S)

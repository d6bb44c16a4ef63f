"""Keeps the processors busy, so that the events that tests wait for come late and reordered.

Owns the processes that do so. Must not know the tests.
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
    """Return commands that keep this machine busy: stress-ng where it is installed, else Python.

    Args:
        workers: Number of processes that compute; stress-ng adds as many that switch contexts.
    """
    if not workers:
        return []
    if shutil.which("stress-ng"):
        stressors = ("--cpu", str(workers), "--switch", str(workers))
        return [("stress-ng", "--quiet", "--timeout", "0", *stressors)]
    return [(sys.executable, "-c", "while True: pass")] * workers


@contextmanager
def load(workers: int) -> Iterator[None]:
    """Keep the machine busy while the body runs; see `commands`."""
    running = [subprocess.Popen([*_ENDS_WITH_US, *command]) for command in commands(workers)]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(_STOP_S)

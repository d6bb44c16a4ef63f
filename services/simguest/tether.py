"""Ties a process to its parent: it is told to end when the parent is gone, however that ended.

Owns the use of PR_SET_PDEATHSIG (prctl(2)). As a program, `python -m services.simguest.tether PID
PROGRAM ARGUMENT…` becomes PROGRAM, tied to its parent PID. The signal comes when the *thread* that
started the process ends, so start tied processes from a thread that lives as long as the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def tie_to_parent(parent_pid: int) -> None:
    """Have this process sent SIGTERM when its parent ends; survives exec.

    Args:
        parent_pid: Who the parent is; when it is another one by now, it has ended already.

    Raises:
        OSError: prctl failed.
        SystemExit: The parent is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent_pid:
        raise SystemExit(f"process {parent_pid}, which started this one, is gone")


def _main(arguments: list[str]) -> None:
    parent_pid, *program = arguments
    tie_to_parent(int(parent_pid))
    os.execv(program[0], program)  # noqa: S606 - the arguments are the guest's own


if __name__ == "__main__":
    _main(sys.argv[1:])

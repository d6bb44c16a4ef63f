"""Ties a process to its parent: it gets SIGTERM when the parent ends, even by SIGKILL.

Owns the use of PR_SET_PDEATHSIG (prctl(2)). `python -m services.rpc.tether PID PROGRAM
ARGUMENT…` ties itself to its parent PID and becomes PROGRAM. The signal is sent when the *thread*
that started the process ends, so that thread must live as long as its process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def tie_to_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGTERM when the parent of this process ends; exec keeps that.

    Args:
        parent_pid: The process that should be the parent; if it no longer is, it has ended.

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

"""Ties a process to its parent: it gets a signal when the parent ends, even by SIGKILL.

Owns the use of PR_SET_PDEATHSIG (prctl(2)). `python -m services.rpc.tether PID PROGRAM
ARGUMENT…` ties itself to its parent PID and becomes PROGRAM, which gets SIGTERM then; with `--kill`
before the PID it is SIGKILL, for a program that may be stuck. The signal is sent when the *thread*
that started the process ends, so that thread must live as long as its process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def tie_to_parent(parent_pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the parent of this process ends; exec keeps that.

    Args:
        parent_pid: The process that should be the parent; if it no longer is, it has ended.
        number: The signal.

    Raises:
        OSError: prctl failed.
        SystemExit: The parent is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent_pid:
        raise SystemExit(f"process {parent_pid}, which started this one, is gone")


def _main(arguments: list[str]) -> None:
    kill = arguments[0] == "--kill"
    parent_pid, *program = arguments[1:] if kill else arguments
    tie_to_parent(int(parent_pid), signal.SIGKILL if kill else signal.SIGTERM)
    os.execv(program[0], program)  # noqa: S606 - the arguments are the guest's own


if __name__ == "__main__":
    _main(sys.argv[1:])

"""A process that sets locks on request, and the locks that the kernel knows of."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 20.0

_SCRIPT = """
import errno, fcntl, os, signal, sys

signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
signal.siginterrupt(signal.SIGUSR1, True)

class Interrupted(Exception):
    pass

def give_up(*_):
    raise Interrupted

signal.signal(signal.SIGUSR2, give_up)
files = []
for line in sys.stdin:
    call, how, path = line.rstrip("\\n").split(" ", 2)
    try:
        if call == "open":
            files.append(os.open(path, os.O_RDWR))
        elif call == "close":
            os.close(files.pop())
        else:
            getattr(fcntl, call)(files[int(path)], int(how))
        print("done", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    except Interrupted:
        print("interrupted", flush=True)
"""


class Locker:
    """One such process; it has opened a file."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)

    def open(self, path: Path) -> None:
        self.send("open", 0, str(path))
        assert self.answer() == "done"

    def close(self) -> None:
        """Close the file that was opened last."""
        self.send("close", 0, "")
        assert self.answer() == "done"

    def lock(self, call: str, how: int, file: int = 0) -> str:
        """Call fcntl.lockf or fcntl.flock; return "done" or the errno."""
        self.send(call, how, str(file))
        return self.answer()

    def send(self, call: str, how: int, argument: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{call} {how} {argument}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until it has ended."""
        return self.process.wait(DEADLINE_S)


def waiting_locks(path: Path) -> int:
    """Return the number of requests that wait for a lock on a file of the host."""
    inode = f":{path.stat().st_ino} "
    lines = _proc_locks().splitlines()
    return sum(inode in line and line.split()[1] == "->" for line in lines)


def until_waiting(path: Path, count: int = 1) -> None:
    """Wait until this many requests wait for a lock on a file; the kernel has no event for it."""
    deadline = time.monotonic() + DEADLINE_S
    while waiting_locks(path) != count:
        assert time.monotonic() < deadline, f"{waiting_locks(path)} wait"
        time.sleep(0.01)


def _proc_locks() -> str:
    with open("/proc/locks", encoding="ascii") as table:  # noqa: PTH123
        return table.read()

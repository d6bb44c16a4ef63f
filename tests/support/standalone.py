"""A `porthole device` process that a test starts."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEADLINE_S = 30.0


class Process:
    """A `porthole device` that is ready."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        fds: Sequence[int] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "services.cli.main", "device", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env={**os.environ, **(env or {})},
        )
        assert self.process.stdout
        self.line = self.process.stdout.readline()
        self._said = b""

    @property
    def socket_path(self) -> Path:
        return Path(self.line.removesuffix("\n").rpartition(" unix:")[2])

    def mapped_bytes(self, name: str = "guest-ram") -> int:
        """Return how many bytes of a guest's memory, a memfd of that name, it has mapped."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        found = re.finditer(rf"([0-9a-f]+)-([0-9a-f]+) .*/memfd:{re.escape(name)}", maps)
        return sum(int(m[2], 16) - int(m[1], 16) for m in found)

    def await_log(self, text: str) -> None:
        """Wait until the log has a text."""
        assert self.process.stderr
        while text.encode() not in self._said:
            read = os.read(self.process.stderr.fileno(), 1 << 16)
            assert read, self._said
            self._said += read

    def end(self) -> tuple[int, str]:
        """Wait until the process has ended; return exit code and log."""
        log = self.process.communicate(timeout=DEADLINE_S)[1]
        return self.process.returncode, self._said.decode() + log

    def terminate(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def terminate_by_another_thread(self) -> tuple[int, str]:
        """Send SIGTERM so that a thread other than the main one receives it."""
        pid = self.process.pid
        (other, *_) = (
            int(t.name) for t in Path(f"/proc/{pid}/task").iterdir() if int(t.name) != pid
        )
        assert ctypes.CDLL(None).tgkill(pid, other, int(signal.SIGTERM)) == 0
        return self.end()

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


@contextmanager
def running(
    *arguments: str,
    env: dict[str, str] | None = None,
    fds: Sequence[int] = (),
    prefix: Sequence[str] = (),
) -> Iterator[Process]:
    """Run the device; it is killed after the body, if it has not ended. `prefix` runs it."""
    process = Process(*arguments, env=env, fds=fds, prefix=prefix)
    try:
        yield process
    finally:
        process.kill()


def fs(run_dir: Path, shared: Path, *more: str) -> list[str]:
    return ["fs", f"--socket-path={run_dir}/s.sock", f"--shared-dir={shared}", *more]

"""One passt: its start, its last words, its end.

passt ends when its stream is closed, so it does not outlive this process, however that ends. It
becomes nobody when it was started by root, and sandboxes itself. Must not know why it is started.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from services.devicehost.devices.net.user.installation import Installation

START_S: Final = 10.0
"""How long passt may take until it serves."""
_END_S: Final = 2.0
"""How long it may take to end on SIGTERM."""
_KEPT_LINES: Final = 16
_KEPT_BYTES: Final = 4096
"""Of what it says; a guest can make it say more than that."""


class Passt:
    """A passt that serves, or has ended. One thread uses it.

    Attributes:
        pid: Its process id.
        control: An O_PATH descriptor of its control socket; None: it has none.
        log_fd: Readable when it has said something, and once it has ended.
    """

    def __init__(
        self, installation: Installation, arguments: Sequence[str], theirs: socket.socket
    ) -> None:
        """Start it; it may not serve yet.

        Args:
            installation: Which one.
            arguments: Of its network.
            theirs: Its end of the stream, which is closed here.

        Raises:
            FailedPreconditionError: PASST_FAILED.
        """
        self.control: int | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = b""
        self._program = installation.passt
        # passt makes both files before it gives up its rights. They are gone once it serves, so
        # nothing is left behind when this process is killed.
        self._place = Path(tempfile.mkdtemp(prefix="porthole-passt-"))
        self._ready_fd = -1
        self._wants_control = installation.pesto is not None
        try:
            os.mkfifo(self._place / "ready", 0o600)
            self._ready_fd = os.open(self._place / "ready", os.O_RDONLY | os.O_NONBLOCK)
            control = ["--conf-path", str(self._place / "control")] if self._wants_control else []
            self._process = subprocess.Popen(
                [
                    *(installation.passt, "--fd", str(theirs.fileno())),
                    *("--pid", str(self._place / "ready")),
                    *control,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={},
                # Ctrl-C in a terminal goes to this process only, which ends it in order.
                process_group=0,
            )
        except OSError as error:
            self._clear()
            raise self._failure(f"cannot be started: {error}") from error
        finally:
            theirs.close()
        self.pid = self._process.pid
        assert self._process.stderr is not None  # noqa: S101 - it was started with a pipe
        self.log_fd = self._process.stderr.fileno()
        os.set_blocking(self.log_fd, False)

    def await_ready(self, stop_fd: int) -> bool:
        """Wait until it serves; return False when `stop_fd` was readable before.

        Raises:
            FailedPreconditionError: PASST_FAILED: it has ended, or takes more than START_S. It has
                been ended then.
        """
        try:
            while ready := _readable([self._ready_fd, self.log_fd, stop_fd], START_S):
                if stop_fd in ready:
                    return False
                if self._ready_fd in ready and os.read(self._ready_fd, 32):
                    if self._wants_control:
                        self.control = os.open(self._place / "control", os.O_PATH | os.O_CLOEXEC)
                    return True
                if self.log_fd in ready and not self.read_log():
                    raise self._failure(self.how_it_ended())
            raise self._failure(f"does not serve after {START_S:.0f} s{self.last_words()}")
        except FailedPreconditionError:
            self.end()
            raise
        finally:
            self._clear()

    def read_log(self) -> bool:
        """Take what it has said; return False once it has ended."""
        try:
            data = os.read(self.log_fd, _KEPT_BYTES)
        except BlockingIOError:
            return True
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[-_KEPT_BYTES:]
        words = (" ".join(line.decode(errors="replace").split())[:256] for line in lines)
        self._lines.extend(line for line in words if line)
        return bool(data)

    def how_it_ended(self) -> str:
        """Wait for its end; return its status, and its last lines."""
        code = self._process.wait()
        how = f"status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return f"ended with {how}{self.last_words()}"

    def last_words(self) -> str:
        """Return its last lines as the end of a sentence, or nothing."""
        return f": {'; '.join(list(self._lines)[-4:])}" if self._lines else ""

    def end(self) -> None:
        """End it, if it has not ended, and release what belongs to it."""
        self._clear()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        control, self.control = self.control, None
        if control is not None:
            os.close(control)

    def _clear(self) -> None:
        ready_fd, self._ready_fd = self._ready_fd, -1
        if ready_fd >= 0:
            os.close(ready_fd)
        shutil.rmtree(self._place, ignore_errors=True)

    def _failure(self, what: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            "PASST_FAILED", f"{self._program} {what}", program=self._program
        )


def _readable(fds: Sequence[int], timeout_s: float) -> set[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(timeout_s * 1000)}

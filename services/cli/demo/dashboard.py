"""The dashboard beside the demonstration: a process that shows its handshakes.

Owns its start and its end. It is started before this process enters namespaces of its own, so that
a browser reaches its page, and it is met at a Unix socket.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.launcher import (
    DASHBOARD,
    STOP_DEADLINE_S,
    TETHER,
    dashboard_environment,
    ready_addresses,
)
from services.handshake.errors import UnavailableError
from services.rpc.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class DemoDashboard:
    """A running dashboard.

    Attributes:
        page: URL of its page.
        process: The process, which is not a child of the services.
    """

    page: str
    process: subprocess.Popen[str]

    def until_it_ends(self) -> None:
        """Wait until it ends by itself, which it does only when something is wrong.

        Raises:
            UnavailableError: SERVICE_ENDED.
            KeyboardInterrupt: The user has seen enough.
        """
        status = self.process.wait()
        raise UnavailableError(
            "SERVICE_ENDED",
            f"the dashboard ended with status {status}",
            service=DASHBOARD.module,
        )


@contextmanager
def started(log: Path) -> Iterator[DemoDashboard]:
    """Run a dashboard, to which this process and its children send as their environment says.

    Args:
        log: File for what the dashboard logs.

    Raises:
        UnavailableError: SERVICE_START_FAILED.
    """
    directory = Path(tempfile.mkdtemp(prefix="ph-"))
    os.environ |= dashboard_environment(directory)
    try:
        with log.open("w") as errors:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", TETHER, str(os.getpid())),
                    *(sys.executable, "-m", DASHBOARD.module),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C ends the demonstration; the dashboard has to take its last spans.
                start_new_session=True,
            )
        try:
            yield DemoDashboard(_page(process, log), process)
        finally:
            _end(process)
    finally:
        remove_tree(directory)


def _page(process: subprocess.Popen[str], log: Path) -> str:
    if process.stdout is None:
        raise RuntimeError("the process was started without a pipe")
    line = process.stdout.readline()
    if addresses := ready_addresses(line.rstrip()):
        return addresses[0]  # the page's is the first
    status = process.wait()
    said = log.read_text(errors="backslashreplace").strip() or "it printed nothing"
    raise UnavailableError(
        "SERVICE_START_FAILED",
        f"the dashboard ended with status {status} before it was ready: {said.splitlines()[-1]}",
        service=DASHBOARD.module,
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

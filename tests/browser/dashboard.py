"""A dashboard as a process, and an exporter that sends it traces over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
START_S = 30
SETTLE_S = "1"


class Dashboard:
    """The process.

    Args:
        directory: Where it keeps what it received, and its log.
    """

    def __init__(self, directory: Path) -> None:
        page, grpc, self._http = (_free_port() for _ in range(3))
        self.address = f"http://127.0.0.1:{page}"
        self._log = directory / "dashboard.log"
        self._environment = os.environ | {
            "PORTHOLE_DASHBOARD_LISTEN": f"127.0.0.1:{page}",
            "PORTHOLE_DASHBOARD_OTLP_GRPC": f"127.0.0.1:{grpc}",
            "PORTHOLE_DASHBOARD_OTLP_HTTP": f"127.0.0.1:{self._http}",
            "PORTHOLE_DASHBOARD_DATABASE": str(directory / "dashboard.sqlite"),
            "PORTHOLE_DASHBOARD_SETTLE_S": SETTLE_S,
        }

    def __enter__(self) -> Dashboard:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.dashboard"],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                self._process.wait()
                raise RuntimeError(f"the dashboard did not start:\n{self._log.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def send(self, requests: Iterable[str]) -> None:
        """Send OTLP requests, each a JSON document."""
        for request in requests:
            url = f"http://127.0.0.1:{self._http}/v1/traces"
            headers = {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url, request.encode(), headers)):
                pass

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port

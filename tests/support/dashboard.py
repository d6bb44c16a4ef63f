"""The dashboard as a process, and what asks it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

READY = re.compile(r"porthole dashboard ready on (.+)")


class DashboardApi:
    """What asks a dashboard.

    Attributes:
        page: Address of the page, as a URL.
        token: What it wants to see; empty: nothing.
    """

    def __init__(self, page: str = "", token: str = "") -> None:
        self.page = page
        self.token = token

    def get(self, path: str) -> Any:
        """The JSON at a path of the API."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(f"{self.page}/api/v1{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def wait_for(self, what: Callable[[Any], bool], path: str = "/vms") -> Any:
        """Ask until an answer is as expected, for 20 s."""
        deadline = time.monotonic() + 20
        while True:
            answer = self.get(path)
            if what(answer):
                return answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)


class DashboardProcess(DashboardApi):
    """A dashboard with its file in a directory; a context manager.

    Attributes:
        grpc: Address of OTLP over gRPC.
        http: Address of OTLP over HTTP, as a URL.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        super().__init__()
        self._folder = folder
        self._flags = flags
        self.grpc = self.http = ""
        self.process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        listen = [
            part
            for name in ("listen", "otlp-grpc", "otlp-http")
            for part in (f"--{name}", "127.0.0.1:0")
        ]
        with (self._folder / "dashboard.log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.cli.main", "dashboard"),
                    *("--database", str(self._folder / "d.sqlite"), *listen, *self._flags),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = READY.fullmatch(line.strip())
        if match is None:
            self.__exit__()
            raise AssertionError(line + (self._folder / "dashboard.log").read_text())
        ports = [each for each in match[1].split(", ") if not each.startswith("unix:")]
        self.page, self.grpc, self.http = ports
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
        return status

    def post(self, path: str, body: bytes, media_type: str = "application/x-protobuf") -> int:
        """The status of a request of OTLP."""
        request = urllib.request.Request(
            self.http + path, body, {"content-type": media_type}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

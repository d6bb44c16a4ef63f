"""Debian's Prometheus as a process that scrapes one target and evaluates our alerts."""

from __future__ import annotations

import json
import re
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.support.telemetry_profile import TELEMETRY, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_S: Final = 30.0
_LISTENS: Final = re.compile(r'msg="Listening on" .*address=(\S+)')

_READY: Final = "Server is ready to receive web requests"


class Prometheus:
    """A running Prometheus, asked over its API."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer.

        Raises:
            HTTPError: Prometheus refuses, for instance a query that does not parse.
        """
        with urlopen(f"{self._url}/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the series of an expression, now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def wait_for_scrapes(self, scrapes: int, deadline_s: float = START_S) -> None:
        """Wait until the target was scraped so often."""
        ends = time.monotonic() + deadline_s
        while not self.query(f"sum_over_time(up[5m]) >= {scrapes}"):
            assert time.monotonic() < ends, self.ask("targets")
            time.sleep(0.2)

    def rules_when(self, alert: str) -> dict[str, Any]:
        """Wait until an alert is active, and return what became of each in that evaluation."""
        ends = time.monotonic() + START_S
        while True:
            [group] = self.ask("rules")["groups"]
            rules = {rule["name"]: rule for rule in group["rules"]}
            if rules[alert]["state"] != "inactive":
                return rules
            assert time.monotonic() < ends, group
            time.sleep(0.2)


@contextmanager
def running(directory: Path, target: str) -> Iterator[Prometheus]:
    """Run it with the profile's configuration, every second, and another address to scrape.

    Args:
        directory: For its data and the changed configuration.
        target: host:port of the page of metrics.
    """
    configuration = read(TELEMETRY / "prometheus.yml")
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(TELEMETRY / name) for name in configuration["rule_files"]]
    [job] = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    process = subprocess.Popen(
        ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}",
         "--web.listen-address=127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = ""
        while not ((listens := _LISTENS.search(said)) and _READY in said):
            line = process.stderr.readline()
            assert line, f"prometheus ended: {said}"
            said += line
        yield Prometheus(listens[1])
    finally:
        process.terminate()
        process.communicate(timeout=START_S)

"""The fixtures `porthole_collector` and `porthole_traces`.

Every pytest of an environment with porthole-client imports this module, so it imports nothing else
before a fixture is used.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from porthole.testing.collector import Collector
    from porthole.testing.traces import Traces


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin, which are lines of pytest's configuration."""
    parser.addini(
        "porthole_otlp",
        "address on which porthole_collector takes OTLP over gRPC, for services that run already",
        default="127.0.0.1:0",
    )
    parser.addini("porthole_command", "the command `porthole`, which judges", default="porthole")


@pytest.fixture(scope="session")
def porthole_collector(pytestconfig: pytest.Config) -> Iterator[Collector]:
    """Takes OTLP on loopback. Start services with its `environment`, and they send spans to it."""
    try:
        from porthole.testing.collector import collecting
    except ModuleNotFoundError as error:
        raise pytest.UsageError(
            f"{error}; pip install 'porthole-client[pytest]' has all that the fixture needs"
        ) from None
    with collecting(pytestconfig.getini("porthole_otlp")) as collector:
        yield collector


@pytest.fixture
def porthole_traces(
    porthole_collector: Collector, pytestconfig: pytest.Config, tmp_path: Path
) -> Traces:
    """The spans that arrive during a test, and the verdict on their handshakes."""
    from porthole.testing.traces import Traces

    command = shlex.split(pytestconfig.getini("porthole_command"))
    return Traces(porthole_collector, command, tmp_path / "porthole-traces.jsonl")

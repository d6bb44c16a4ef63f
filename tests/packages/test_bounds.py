"""The lower bounds of the dependencies are those that are tested, and fit the stubs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.packages.installation import lower_bounds
from tests.packages.interpreters import find

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "pyproject.toml"
CLIENT = ROOT / "clients" / "python" / "pyproject.toml"
BOUNDS = lower_bounds(PROJECT)
STUBS = sorted(CLIENT.parent.rglob("*_pb2*.py"))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_the_lowest_lock_has_the_very_bound(name: str) -> None:
    [locked] = re.findall(
        rf"^{re.escape(name)}==(\S+)", (ROOT / "requirements-lowest.lock").read_text(), re.M
    )
    bound = numbers(BOUNDS[name])
    padded = (*bound, 0, 0)[: len(numbers(locked))]
    assert numbers(locked) == padded, "state this bound, or run `make lock`"


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.name)
def test_a_stub_works_with_the_lowest_versions(stub: Path) -> None:
    """protobuf and grpcio refuse a stub of a later version than their own when it is imported."""
    text = stub.read_text()
    if protobuf := re.search(r"^# Protobuf Python Version: (\S+)", text, re.M):
        assert numbers(protobuf[1]) <= numbers(BOUNDS["protobuf"])
    else:
        [grpcio] = re.findall(r"^GRPC_GENERATED_VERSION = '(\S+)'", text, re.M)
        assert numbers(grpcio) <= numbers(BOUNDS["grpcio"])


def test_the_client_has_the_bounds_and_the_version_of_the_services() -> None:
    client = tomllib.loads(CLIENT.read_text())["project"]
    services = tomllib.loads(PROJECT.read_text())["project"]
    assert lower_bounds(CLIENT).items() <= BOUNDS.items()
    assert client["version"] == services["version"]
    assert f"porthole-client=={client['version']}" in services["dependencies"]


def test_an_interpreter_is_of_the_version_that_was_asked_for() -> None:
    assert find("3.99") is None
    assert find("2") is None

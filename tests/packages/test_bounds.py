"""The lower bounds of the dependencies are those that are tested, and fit the stubs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.packages.installation import lower_bounds
from tests.packages.interpreters import find

ROOT = Path(__file__).resolve().parents[2]
BOUNDS = lower_bounds(ROOT / "pyproject.toml")
STUBS = sorted((ROOT / "protos" / "gen").rglob("*_pb2*.py"))


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


def test_an_interpreter_is_of_the_version_that_was_asked_for() -> None:
    assert find("3.99") is None
    assert find("2") is None

"""A share against a plain directory as its model, with random calls."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import run_state_machine_as_test

from services.devicehost import fastpath
from tests.conformance.conftest import ALL
from tests.conformance.driver_tree import DriverTree
from tests.conformance.effort import SCALE, SEED
from tests.conformance.host_tree import HostTree
from tests.conformance.machine import ShareMachine
from tests.unit.simguest.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conformance.conftest import Place
    from tests.conformance.machine import Tree

_SETTINGS = hypothesis.settings(
    max_examples=150 * SCALE,
    stateful_step_count=60,
    database=None,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    suppress_health_check=list(hypothesis.HealthCheck),
)

_SHRINKING_S = 40
"""How long a failure is made smaller; Hypothesis has no setting for it, and takes 300 s."""

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _bounded_shrinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", _SHRINKING_S)


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)  # a driver sends modes as they are to be
    yield
    os.umask(before)


@pytest.mark.fuse
def test_through_the_mount_point(place: Place) -> None:
    def trees() -> tuple[Tree, HostTree]:
        name = f"model-{next(_numbers)}"
        (place.plain / name).mkdir()
        (place.mounted / name).mkdir()
        return HostTree(place.mounted / name), HostTree(place.plain / name)

    _run(trees)


@pytest.mark.parametrize("native", [True, False])
def test_through_the_driver(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    if not native:
        monkeypatch.setattr(fastpath, "library", None)
    (tmp_path / "shared").mkdir()
    rig = Rig(run_dir)
    rig.share("data", tmp_path / "shared", ALL)
    files = rig.workload.files("data")

    def trees() -> tuple[Tree, HostTree]:
        name = f"model-{next(_numbers)}"
        (tmp_path / name).mkdir()
        files.mkdir(name)
        return DriverTree(files, name.encode()), HostTree(tmp_path / name)

    try:
        _run(trees)
    finally:
        rig.close()


def _run(trees: Callable[[], tuple[Tree, HostTree]]) -> None:
    class Machine(ShareMachine):
        def trees(self) -> tuple[Tree, HostTree]:
            return trees()

    print(f"PORTHOLE_SEED={SEED} PORTHOLE_SOAK={SCALE}")
    run_state_machine_as_test(hypothesis.seed(SEED)(Machine), settings=_SETTINGS)

"""The rig, with and without a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.simguest.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def rig(run_dir: Path) -> Iterator[Rig]:
    made = Rig(run_dir)
    yield made
    made.close()


@pytest.fixture(params=[16, 0], ids=["pool", "no pool"])
def any_rig(run_dir: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(run_dir, pool_mib=request.param)
    yield made
    made.close()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory

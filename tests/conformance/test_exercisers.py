"""Several processes at work on a share at a time, like fsx and fsstress on a file system."""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.conformance.effort import SCALE, SEED
from tests.conformance.exerciser import Exerciser, finish_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.actor import Actor
    from tests.conformance.conftest import Place

pytestmark = pytest.mark.fuse

PROCESSES = 4
FILE_CALLS = 1500
TREE_CALLS = 1000

_numbers = itertools.count()


def seeds() -> range:
    print(f"PORTHOLE_SEED={SEED} PORTHOLE_SOAK={SCALE}")
    return range(SEED * PROCESSES, (SEED + 1) * PROCESSES)


def test_files_hold_what_was_written(place: Place) -> None:
    name = f"files-{next(_numbers)}"
    (place.mounted / name).mkdir()
    running = {
        path: Exerciser("file", seed, FILE_CALLS * SCALE, place.mounted / path)
        for seed, path in ((seed, f"{name}/{seed}") for seed in seeds())
    }
    for path, checksum in finish_all(running).items():
        assert zlib.crc32((place.shared / path).read_bytes()) == int(checksum), path


@pytest.mark.parametrize("kind", ["tree", "tree-of-host"])
def test_trees_that_several_work_on(kind: str, place: Place, actors: dict[str, Actor]) -> None:
    name = f"trees-{next(_numbers)}"
    expected = _exercise(kind, place.plain / name, place.plain / name)
    found = _exercise(kind, place.mounted / name, place.shared / name)
    for seed, lines in expected.items():
        assert found[seed] == lines, f"seed {seed}"
    root = actors["root"]
    seen = root.call("exactly", str(place.mounted / name))
    assert seen == root.call("exactly", str(place.shared / name))
    for seed in seeds():
        tree = root.call("tree", str(place.mounted / name / str(seed)))
        assert tree == root.call("tree", str(place.plain / name / str(seed)))


def _exercise(kind: str, mounted: Path, shared: Path) -> dict[int, list[str]]:
    """Let processes work on a tree; with the kind tree-of-host one of them on the host."""
    mounted.mkdir()
    (mounted / "common").mkdir()
    running: dict[int, Exerciser] = {}
    for seed in seeds():
        top = shared if kind == "tree-of-host" and not running else mounted
        (top / str(seed)).mkdir()
        running[seed] = Exerciser(kind, seed, TREE_CALLS * SCALE, top / str(seed), top / "common")
    return {seed: printed.splitlines() for seed, printed in finish_all(running).items()}

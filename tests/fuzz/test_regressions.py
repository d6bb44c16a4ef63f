"""Every kept input of every fuzz target is replayed."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.reader import Reader
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.vhost_user import converse

if TYPE_CHECKING:
    from pathlib import Path

NATIVE = [
    pytest.param(target, id=target.name, marks=[pytest.mark.root] if target.needs_root else [])
    for target in TARGETS
    if target.sources
]
(CONVERSATIONS,) = (target for target in TARGETS if not target.sources)


@pytest.mark.fuzz
@pytest.mark.parametrize("target", NATIVE)
def test_the_native_fast_path(target: Target) -> None:
    program = target.build()
    assert any(target.corpus.iterdir())
    # A borrowed corpus was not made to show a race, so each of its inputs is run several times.
    often = target.repeats if target.borrows else 1
    for folder, repeats in ((target.corpus, often), (target.regressions, target.repeats)):
        inputs = sorted(map(str, folder.glob("*")))
        if inputs:
            result = target.run(program, f"-runs={repeats}", *inputs)
            assert result.returncode == 0, result.stdout[-6000:]
            for path in inputs:
                assert f"Executed {path} " in result.stdout


@pytest.mark.parametrize("path", CONVERSATIONS.inputs(), ids=lambda path: path.name)
def test_vhost_user_messages(path: Path, tmp_path: Path) -> None:
    gc.collect()  # garbage of other tests must not close descriptors while these are compared
    converse(Reader(path.read_bytes()), tmp_path)

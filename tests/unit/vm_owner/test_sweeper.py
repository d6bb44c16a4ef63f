"""What a killed owner leaves on the host is removed, and nothing else."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING

from services.vm_owner.sweeper import Sweeper, read_left

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_vms_that_ended_are_not_left() -> None:
    assert read_left(["+a\n", "+b\n", "-a\n", "+c\n", "-x\n", "?d\n"]) == ["b", "c"]
    assert read_left([]) == []


async def test_the_end_of_an_owner_is_the_end_of_what_it_has(tmp_path: Path) -> None:
    ended, running, foreign = (str(uuid.uuid4()) for _ in range(3))
    for vm_id in (ended, running, foreign):
        (tmp_path / vm_id).mkdir()
        (tmp_path / vm_id / "console.log").write_text("said")
    sweeper = Sweeper(tmp_path, [])
    await sweeper.begin(ended)
    await sweeper.begin(running)
    sweeper.end(ended)
    await sweeper.close()
    assert [(tmp_path / vm_id).exists() for vm_id in (ended, running, foreign)] == [
        True,
        False,
        True,
    ]


async def test_an_owner_without_vms_has_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere")
    sweeper = Sweeper(tmp_path, [])
    sweeper.end(str(uuid.uuid4()))
    await sweeper.close()

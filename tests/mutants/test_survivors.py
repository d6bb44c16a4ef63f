"""What is read from the folder in which mutmut worked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.mutants.survivors import read_alive

if TYPE_CHECKING:
    from pathlib import Path


def test_what_timed_out_runs_again_and_what_a_test_killed_does_not(tmp_path: Path) -> None:
    meta = tmp_path / "mutants" / "services" / "x.py.meta"
    meta.parent.mkdir(parents=True)
    codes = {"killed": 1, "crashed": -11, "lived": 0, "untested": 33, "limit": 36, "cpu": -24}
    meta.write_text(json.dumps({"exit_code_by_key": {**codes, "not run": None}}))
    assert set(read_alive(tmp_path)) == {"lived", "untested", "limit", "cpu", "not run"}

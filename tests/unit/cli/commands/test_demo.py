from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from services.cli.exit_codes import USAGE

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demonstration_empties_no_foreign_directory(tmp_path: Path) -> None:
    # In another process, because the demonstration of root changes its namespaces.
    (tmp_path / "precious").write_text("x")
    result = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "demo", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == USAGE
    assert str(tmp_path) in result.stderr
    assert (tmp_path / "precious").read_text() == "x"

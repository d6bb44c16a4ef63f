"""The modules of the page that are pure, in node: no browser is needed for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "services" / "dashboard" / "page"
TESTS = Path(__file__).parent / "modules"


@pytest.mark.node
@pytest.mark.parametrize("file", sorted(TESTS.glob("*.mjs")), ids=lambda file: file.name)
def test_pure_modules(tmp_path: Path, file: Path) -> None:
    for module in (*PAGE.glob("*.js"), file):
        shutil.copy(module, tmp_path)
    # A browser is told by the page that they are modules; node reads it here.
    (tmp_path / "package.json").write_text('{"type": "module"}')
    ended = subprocess.run(
        ["node", "--test", file.name], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.node
@pytest.mark.parametrize("module", sorted(PAGE.glob("*.js")), ids=lambda module: module.name)
def test_module_can_be_parsed(tmp_path: Path, module: Path) -> None:
    shutil.copy(module, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    checked = subprocess.run(
        ["node", "--check", module.name], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr

"""`make setup` may be interrupted anywhere and repeated; `make clean` removes what targets made.

The Makefile is the real one. Its Python is a stand-in that installs nothing, and stops halfway
where a test asks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

PYTHON: Final = r"""#!/bin/sh
# Each piece of work has a first and a second half: "half" becomes "whole". In between a test may
# stop it: at the piece whose number it has written into the file `stop`.
work() {
  echo "$1" >>log
  echo half >"$2"
  if [ "$(wc -l <log)" = "$(cat stop 2>/dev/null)" ]; then echo >stopped; exec sleep 600; fi
  echo whole >"$2"
}
case "$*" in
-c*) ;;
"-m venv"*)
  case "$*" in *--clear*) rm -rf .venv ;; esac
  mkdir -p .venv/bin .venv/packages
  cp "$0" .venv/bin/python
  work venv .venv/pip
  ;;
"-m pip"*)
  [ "$(cat .venv/pip)" = whole ] || { echo "No module named pip" >&2; exit 1; }
  for last; do :; done
  [ "$last" != . ] || last=porthole
  # As with pip, what is there in any form is not installed again.
  [ -e ".venv/packages/$last" ] || work "$last" ".venv/packages/$last"
  ;;
native/build.py)
  work library services/devicehost/libfastpath.new
  mv services/devicehost/libfastpath.new services/devicehost/libfastpath.so
  ;;
esac
"""

LOCKS: Final = ("requirements-dev.lock", "requirements-protos.lock")
PIECES: Final = ("venv", "development", "protoc", "porthole", "library")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the real Makefile and nothing to install."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for folder in ("services/devicehost", "protos/baseline", "native", "tests", "bench", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    for name in (*LOCKS, "pyproject.toml", "compile_flags.txt", "native/build.py"):
        (tmp_path / name).touch()
    (tmp_path / "deploy").mkdir()
    (tmp_path / "clients" / "python").mkdir(parents=True)
    (tmp_path / "clients" / "python" / "pyproject.toml").touch()
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "--no-print-directory", "PYTHON=./python", *arguments],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def made(project: Path, *arguments: str) -> str:
    run = make(project, *arguments)
    said, _ = run.communicate(timeout=WAIT_S)
    assert run.returncode == 0, said
    return said


def interrupted(project: Path, piece: int, by: signal.Signals) -> None:
    """Run `make setup` and end it, with all its processes, in the middle of a piece of work."""
    (project / "stop").write_text(f"{piece}\n")
    (project / "log").unlink(missing_ok=True)
    run = make(project, "setup")
    deadline = time.monotonic() + WAIT_S
    while not (project / "stopped").exists():
        assert time.monotonic() < deadline
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.01)
    os.killpg(run.pid, by)
    run.communicate(timeout=WAIT_S)
    (project / "stop").unlink()
    (project / "stopped").unlink()


def packages(project: Path) -> dict[str, str]:
    folder = project / ".venv" / "packages"
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("piece", range(1, 6), ids=PIECES)
def test_setup_that_was_interrupted_can_be_repeated(
    project: Path, piece: int, by: signal.Signals
) -> None:
    interrupted(project, piece, by)
    made(project, "setup")
    assert packages(project) == dict.fromkeys((*LOCKS, "porthole"), "whole")
    assert (project / "services/devicehost/libfastpath.so").read_text() == "whole\n"


@pytest.mark.parametrize("piece", range(1, 4), ids=PIECES[1:4])
def test_an_update_that_was_interrupted_can_be_repeated(project: Path, piece: int) -> None:
    made(project, "setup")
    for package in (project / ".venv" / "packages").iterdir():
        package.unlink()  # all are outdated
    time.sleep(0.02)
    (project / "requirements-dev.lock").touch()
    interrupted(project, piece, signal.SIGKILL)
    made(project, "setup")
    assert packages(project) == dict.fromkeys((*LOCKS, "porthole"), "whole")


def test_setup_that_is_done_does_nothing(project: Path) -> None:
    made(project, "setup")
    (project / "log").unlink()
    made(project, "setup")
    assert not (project / "log").exists()


def test_clean_removes_all_that_git_ignores_and_nothing_of_the_user(project: Path) -> None:
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        subprocess.run([*git, *command], cwd=project, check=True)
    patterns = (project / ".gitignore").read_text().split()
    for pattern in patterns:
        example = project / pattern.replace("*", "example")
        if pattern == "__pycache__/":
            example = project / "tests" / "deep" / "__pycache__"
        if pattern.endswith("/"):
            example.mkdir(parents=True)
            example /= "file"
        example.write_text("made")
    (project / "tests" / "notes.txt").write_text("the user's")
    made(project, "clean")
    status = ("git", "status", "--porcelain", "--ignored", "--untracked-files=all")
    left = subprocess.run(status, cwd=project, capture_output=True, text=True, check=True).stdout
    assert left.splitlines() == ["?? tests/notes.txt"]

"""The examples of docs/ci.md, each run as it is printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.main import get_command

from services.cli.main import app
from tests.support.command import CALL_S

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "ci.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
GITHUB, GITLAB = (yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml")
[PYTHON] = [text for kind, text in BLOCKS if kind == "python"]
[CONSOLE] = [text for kind, text in BLOCKS if kind == "console"]
JOB = GITHUB["jobs"]["handshakes"]
RUN_DIR = "/tmp/ph"
TRACE, REPORT = "trace.jsonl", "handshakes.xml"


def run(script: list[str], folder: Path, run_dir: Path, variables: dict[str, str]) -> str:
    """Run the lines of a job in a folder, with the run directory in place of the printed one."""
    programs = Path(sys.executable).parent
    assert variables["PORTHOLE_RUN_DIR"] == RUN_DIR
    result = subprocess.run(
        ["bash", "-e", "-c", "\n".join(script)],
        cwd=folder,
        env={
            **os.environ,
            **variables,
            "PORTHOLE_RUN_DIR": str(run_dir),
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=2 * CALL_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def numbers_of(report: Path) -> tuple[int, int]:
    """The numbers of tests and of failures in a JUnit file."""
    root = ElementTree.fromstring(report.read_bytes())
    return len(list(root.iter("testcase"))), len(list(root.iter("failure")))


def installed(line: str) -> list[Path]:
    """The directories that a line installs, in this checkout."""
    program, action, *folders = shlex.split(line)
    assert (program, action) == ("pip", "install")
    inside = [folder.removeprefix("./porthole").lstrip("/") for folder in folders]
    return [ROOT / folder for folder in inside]


def test_the_workflow_for_github_runs(tmp_path: Path, run_dir: Path) -> None:
    scripts = {step["name"]: step["run"] for step in JOB["steps"] if "run" in step}
    assert list(scripts) == ["Install", "Work with a VM", "Judge the handshakes"]
    assert installed(scripts["Install"]) == [ROOT / "clients" / "python", ROOT]
    (tmp_path / "file").write_text("shared")
    run([scripts["Work with a VM"]], tmp_path, run_dir, JOB["env"])
    said = run([scripts["Judge the handshakes"]], tmp_path, run_dir, JOB["env"])
    assert "WSLC" in said
    assert numbers_of(tmp_path / REPORT) == (1, 0)
    [kept] = [step["with"]["path"] for step in JOB["steps"] if "upload" in step.get("uses", "")]
    assert kept.split() == [TRACE, REPORT]
    assert all((tmp_path / name).exists() for name in kept.split())


def test_the_workflow_for_github_has_what_github_requires() -> None:
    # YAML 1.1 reads the key `on` as true.
    assert GITHUB.keys() == {"name", True, "permissions", "jobs"}
    assert JOB.keys() == {"runs-on", "env", "steps"}
    for step in JOB["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_the_job_for_gitlab_runs(tmp_path: Path, run_dir: Path) -> None:
    job: dict[str, Any] = GITLAB["handshakes"]
    assert installed(job["before_script"][0]) == [ROOT / "clients" / "python", ROOT]
    variables = {key: value for key, value in job["variables"].items() if "PORTHOLE" in key}
    assert "WSL2" in run(job["script"], tmp_path, run_dir, variables)
    assert job["artifacts"]["reports"] == {"junit": REPORT}
    assert job["artifacts"]["paths"] == [TRACE]
    assert numbers_of(tmp_path / REPORT) == (1, 0)


@pytest.mark.parametrize("broken", [False, True], ids=["valid", "broken"])
def test_the_test_with_pytest_runs(tmp_path: Path, run_dir: Path, broken: bool) -> None:
    text = PYTHON.replace(RUN_DIR, str(run_dir))
    if broken:  # the session is not played
        text = text.replace("    owner.play_session(vm.vm_id)\n", "")
        text = text.replace("(vm.vm_id)\n", "(vm.vm_id, settle_s=0)\n").replace(
            "terminate_vm(vm.vm_id, settle_s=0)", "terminate_vm(vm.vm_id)"
        )
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=2 * CALL_S,
        check=False,
    )
    assert ("1 failed" if broken else "1 passed") in result.stdout, result.stdout
    assert ("CAPABILITIES_MISSING" in result.stdout) == broken


def test_every_printed_command_has_options_that_exist() -> None:
    group: Any = get_command(app)
    verify = group.get_command(None, "handshake").get_command(None, "verify")
    known = {name for option in verify.params for name in option.opts + option.secondary_opts}
    lines = [line for line in CONSOLE.splitlines() if "porthole handshake verify" in line]
    assert len(lines) == 6
    words = {word for line in lines for word in shlex.split(line, comments=True)}
    given = {word for word in words if word.startswith("--")}
    shown = set(re.findall(r"`(--[a-z-]+)", DOCUMENT.read_text()))
    assert {"--junit", "--expect", "--github", "--vm"} <= shown
    assert given | (shown - {"--slurp"}) <= known

"""A run directory that another user could write to: no service and no client uses it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.cli.exit_codes import REFUSED
from tests.support.command import Porthole

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = [
    ["vm", "list"],
    ["session", "apply", "abcd"],
    ["share", "list", "abcd"],
    ["vm", "watch", "abcd"],
]


def in_default(temporary: Path) -> tuple[Porthole, Path]:
    """Return the command with the default run directory below another /tmp, and that directory."""
    command = Porthole(temporary)
    del command.environment["PORTHOLE_RUN_DIR"]
    del command.environment["PORTHOLE_TRACE_FILE"]
    command.environment.pop("XDG_RUNTIME_DIR", None)
    command.environment["TMPDIR"] = str(temporary)
    return command, temporary / f"porthole-{os.geteuid()}"


@pytest.mark.parametrize("arguments", CLIENTS, ids=" ".join)
def test_no_client_connects_to_a_false_owner(run_dir: Path, arguments: list[str]) -> None:
    command, default = in_default(run_dir)
    default.mkdir()
    default.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as false_owner:
        false_owner.bind(f"{default}/owner.sock")
        false_owner.listen()
        false_owner.setblocking(False)
        result = command.run(*arguments, code=REFUSED)
        assert "RUN_DIR_UNSAFE" in result.stderr
        assert f"{default}" in result.stderr
        with pytest.raises(BlockingIOError):
            false_owner.accept()


def test_version_says_so(run_dir: Path) -> None:
    command, default = in_default(run_dir)
    default.mkdir()
    default.chmod(0o777)
    said = command.run("version").stderr
    assert said.count(f"the run directory {default} is not used") == 2


def test_up_does_not_use_it(run_dir: Path) -> None:
    command, default = in_default(run_dir)
    default.mkdir()
    default.chmod(0o777)
    assert "RUN_DIR_UNSAFE" in command.run("up", code=REFUSED).stderr
    assert list(default.iterdir()) == []


@pytest.mark.parametrize("service", ["vm_owner", "devicehost", "simguest"])
def test_no_service_uses_it(run_dir: Path, service: str) -> None:
    run_dir.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-m", f"services.{service}", f"--run-dir={run_dir}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert f"the run directory {run_dir} is not used" in result.stderr
    assert list(run_dir.iterdir()) == []

"""The examples of docs/clients.md, each run as it is printed against `porthole up --listen`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.client import VmOwner
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.cli.exit_codes import OK
from tests.support.command import CALL_S, Porthole
from tests.support.node import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "clients.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
PORT = "127.0.0.1:7777"
TOKEN = re.compile(r"swiotlb=0x[0-9a-f]+,67108864")
ENDED = pb.VM_STATE_TERMINATED


class Up:
    """Running services, and what an example leaves there."""

    def __init__(self, command: Porthole, port: str) -> None:
        self.command = command
        self.port = port

    def run(self, *program: str, text: str, **environment: str) -> list[str]:
        """Run an example of this document from the root of the checkout; return what it prints."""
        assert PORT in text
        result = subprocess.run(
            [*program, text.replace(PORT, self.port)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stderr == ""
        return result.stdout.splitlines()

    def the_only_vm(self) -> str:
        """Return the id of the one VM, which has ended and whose handshake is valid."""
        with VmOwner(f"tcp://{self.port}") as owner:
            [vm] = owner.vms()
        assert vm.state == ENDED
        return str(vm.vm_id)

    def token_of(self, vm_id: str) -> str:
        verdict = self.command.verdict(vm_id)
        assert verdict["valid"]
        return str(verdict["token"])


@pytest.fixture
def up(run_dir: Path) -> Iterator[Up]:
    command = Porthole(run_dir)
    process = command.up("--listen", "127.0.0.1:0")
    try:
        assert process.stdout is not None
        found = (re.search(r"127\.0\.0\.1:[1-9]\d*", line) for line in process.stdout)
        yield Up(command, next(match[0] for match in found if match))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=CALL_S)
    assert process.returncode == OK, errors


def example(language: str, number: int = 0) -> str:
    return str([text for kind, text in BLOCKS if kind == language][number])


def test_every_example_is_run() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "python", "javascript", "sh"]


def test_python(up: Up) -> None:
    token, exists, missing, listed = up.run(sys.executable, "-c", text=example("python"))
    assert exists.startswith("SHARE_EXISTS [")
    assert missing == "VM_NOT_FOUND NOT_FOUND"
    assert listed == "True"
    assert token == up.token_of(up.the_only_vm())
    assert TOKEN.fullmatch(token)


def test_python_with_asyncio(up: Up) -> None:
    lines = up.run(sys.executable, "-c", text=example("python", 1))
    [token] = [line for line in lines if not line.startswith("VM_STATE_")]
    assert lines[-1] == "VM_STATE_TERMINATED"
    assert token == up.token_of(up.the_only_vm())


@pytest.mark.node
def test_node(up: Up) -> None:
    [token] = up.run("node", "-e", text=example("javascript"), NODE_PATH=str(MODULES))
    assert token == up.token_of(up.the_only_vm())


def test_grpcurl(up: Up, tmp_path: Path) -> None:
    program = tmp_path / "grpcurl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.support.grpcurl "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    lines = up.run("bash", "-euo", "pipefail", "-c", text=example("sh"), PATH=path)
    assert "porthole.vmowner.v1.VmOwner" in lines
    assert "grpc.health.v1.Health" in lines
    token = up.token_of(up.the_only_vm())
    assert f'  "swiotlbOption": "{token}",' in lines


def test_the_node_example_needs_what_its_lock_has() -> None:
    wanted = set(re.findall(r'require\("(@[^"]+)"\)', example("javascript")))
    lock = json.loads((ROOT / "clients" / "node" / "package-lock.json").read_text())
    assert set(lock["packages"][""]["dependencies"]) == wanted
    assert f"`npm install {' '.join(sorted(wanted))}`" in DOCUMENT.read_text()

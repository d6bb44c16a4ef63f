from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from services.cli.exit_codes import NEGATIVE, OK, USAGE
from services.cli.main import app
from services.handshake import events
from tests.support.documents import check_output
from tests.support.handshake_traces import TOKEN, VM, change, record, to_otlp, without, wsl2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.handshake_traces import Steps

RUNNER = CliRunner()
UNUSED = (events.FIRST_REQUEST, events.DEVICE_REMOVED, events.VM_TERMINATED)
OTHER = {events.POOL_BASE: 0x1000}


def handshake(*left_out: str) -> Steps:
    """A handshake with one share, without the events that are left out."""
    steps = without(wsl2(), *left_out)
    return [step for step in steps if not step[0].endswith(("eth0", "loopback0"))]


def otlp(steps: Steps) -> str:
    return to_otlp(record(steps))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(otlp(handshake()))
    return file


def test_a_valid_handshake_is_0(trace: Path) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace)])
    assert result.exit_code == OK, result.output
    assert result.stdout.splitlines()[1].split() == [VM, "WSL2", TOKEN, "1", "valid"]
    assert result.stderr == ""


def test_a_broken_rule_is_1_and_named(trace: Path) -> None:
    trace.write_text(otlp(change(handshake(), events.APERTURE_CREATED, OTHER)))
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace)])
    assert result.exit_code == NEGATIVE
    assert "APERTURE_MISMATCH" in result.stdout
    assert f"{VM}: APERTURE_MISMATCH: " in result.stderr


def test_the_verdict_as_json(trace: Path) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert document["handshake"] == "valid"
    (vm,) = document["vms"]
    assert (vm["vm_id"], vm["valid"], vm["token"], vm["devices"]) == (VM, True, TOKEN, 1)

    trace.write_text(otlp(handshake(*UNUSED)))
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    assert result.exit_code == NEGATIVE
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert document["handshake"] == "FIRST_REQUEST_MISSING"
    assert document["vms"][0]["violations"][0]["rule"] == "FIRST_REQUEST_MISSING"


def test_a_device_may_be_declared_idle(trace: Path) -> None:
    trace.write_text(otlp(handshake(*UNUSED)))
    result = RUNNER.invoke(app, ["handshake", "verify", "--idle", "src", str(trace)])
    assert result.exit_code == OK, result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "TRACE_WITHOUT_VM"),
        (b"garbage\n", "TRACE_SYNTAX"),
        (b"\xff\xfe\n", "TRACE_SYNTAX"),
        (b'{"resourceSpans": 7}\n', "TRACE_SYNTAX"),
    ],
)
def test_a_file_that_is_no_trace_is_2(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_bytes(content)
    result = RUNNER.invoke(app, ["handshake", "verify", str(file)])
    assert result.exit_code == USAGE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize("file", ["/nowhere/trace.jsonl", "/"])
def test_a_file_that_cannot_be_read_is_2(file: str) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", file])
    assert result.exit_code == USAGE
    (line,) = result.stderr.splitlines()
    assert file in line


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_closes_the_pipe_is_no_error(trace: Path, flags: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "services.cli.main", "handshake", "verify", str(trace), *flags],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stderr) == (OK, "")

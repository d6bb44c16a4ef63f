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
from services.handshake.capabilities import GuestCapabilities, KernelVersion
from services.handshake.events import Sizing
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from tests.support.documents import check_output

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event

VM_ID = "6b1f0c1e-58b8-4cf6-9a3b-0d1c5b0a7a11"
POOL = SwiotlbPool(Gpa(0x3C000000), 64 << 20)
TOKEN = format_token(POOL)
RUNNER = CliRunner()


def handshake(aperture: SwiotlbPool = POOL) -> list[Event]:
    version = KernelVersion(6, 18, 26)
    capabilities = GuestCapabilities(POOL, "6.18.26.3-microsoft", seccomp_user_notification=True)
    device = (VM_ID, "d1", events.FS, "data")
    return [
        events.vm_created(VM_ID, "WSL2", Sizing(2 << 30, True, True, None, POOL.size_bytes)),
        events.guest_booted(VM_ID),
        events.guest_kernel_info(VM_ID, capabilities, version),
        events.pool_latched(VM_ID, POOL, TOKEN),
        events.device_added(*device, f"data;{TOKEN};vm_id={VM_ID}", "swiotlb-token"),
        events.aperture_created(*device, aperture),
        events.first_request(*device),
        events.device_removed(*device),
        events.vm_terminated(VM_ID),
    ]


def otlp(listed: list[Event]) -> str:
    def value(item: events.Attribute) -> dict[str, object]:
        if isinstance(item, bool):
            return {"boolValue": item}
        return {"intValue": str(item)} if isinstance(item, int) else {"stringValue": item}

    found = [
        {
            "name": event.name,
            "timeUnixNano": str(1_000 + number),
            "attributes": [
                {"key": key, "value": value(item)} for key, item in event.attributes.items()
            ],
        }
        for number, event in enumerate(listed)
    ]
    span = {"traceId": "1" * 32, "spanId": "2" * 16, "name": "s", "events": found}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}) + "\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(otlp(handshake()))
    return file


def test_a_valid_handshake_is_0(trace: Path) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace)])
    assert result.exit_code == OK, result.output
    assert result.stdout.splitlines()[1].split() == [VM_ID, "WSL2", TOKEN, "1", "valid"]
    assert result.stderr == ""


def test_a_broken_rule_is_1_and_named(trace: Path) -> None:
    trace.write_text(otlp(handshake(SwiotlbPool(Gpa(0x1000), POOL.size_bytes))))
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace)])
    assert result.exit_code == NEGATIVE
    assert "APERTURE_MISMATCH" in result.stdout
    assert f"{VM_ID}: APERTURE_MISMATCH: " in result.stderr


def test_the_verdict_as_json(trace: Path) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert document["handshake"] == "valid"
    (vm,) = document["vms"]
    assert (vm["vm_id"], vm["valid"], vm["token"], vm["devices"]) == (VM_ID, True, TOKEN, 1)

    trace.write_text(otlp(handshake()[:-3]))
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    assert result.exit_code == NEGATIVE
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert document["handshake"] == "FIRST_REQUEST_MISSING"
    assert document["vms"][0]["violations"][0]["rule"] == "FIRST_REQUEST_MISSING"


def test_a_device_may_be_declared_idle(trace: Path) -> None:
    trace.write_text(otlp(handshake()[:-3]))
    result = RUNNER.invoke(app, ["handshake", "verify", "--idle", "data", str(trace)])
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

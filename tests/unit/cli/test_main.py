from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from typer.testing import CliRunner

from services.cli.exit_codes import NEGATIVE, OK, UNREACHABLE, USAGE
from services.cli.main import app
from services.devicehost import fastpath
from services.handshake import events
from services.handshake.capabilities import GuestCapabilities, KernelVersion
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.rpc.version import SOFTWARE_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event

VM_ID = "6b1f0c1e-58b8-4cf6-9a3b-0d1c5b0a7a11"
POOL = SwiotlbPool(Gpa(0x3C000000), 64 << 20)
TOKEN = format_token(POOL)
RUNNER = CliRunner()

ALL_COMMANDS = [
    [],
    ["up"],
    ["demo"],
    ["health"],
    ["version"],
    *(["vm", name] for name in ("create", "list", "show", "terminate", "watch")),
    *(["share", name] for name in ("add", "remove", "list", "hash")),
    ["session", "apply"],
    ["handshake", "verify"],
]


def handshake(aperture: SwiotlbPool = POOL) -> list[Event]:
    version = KernelVersion(6, 18, 26)
    capabilities = GuestCapabilities(POOL, "6.18.26.3-microsoft", seccomp_user_notification=True)
    device = (VM_ID, "d1", events.FS, "data")
    return [
        events.vm_created(VM_ID, "WSL2", 2 << 30, POOL.size_bytes),
        events.guest_booted(VM_ID),
        events.guest_kernel_info(VM_ID, capabilities, version),
        events.pool_latched(VM_ID, POOL, TOKEN),
        events.device_added(*device, f"data;{TOKEN};vm_id={VM_ID}"),
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


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == OK
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["no-such-command"],
        ["vm", "create", "--kind", "wsl3"],
        ["vm", "create", "--ram", "many"],
        ["vm", "create", "--ram", "99999999999T"],
        ["vm", "create", "--wslconfig", "/nowhere/.wslconfig"],
        ["vm", "create", "--share", ",ro"],
        ["vm", "show"],
        ["--wait", "soon", "vm", "list"],
        ["--owner", "nowhere", "vm", "list"],
        ["--owner", "unix:relative", "vm", "list"],
        ["health", "127.0.0.1:99999"],
        ["demo", "--tree", "/nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_on_stderr(command: list[str]) -> None:
    result = RUNNER.invoke(app, command)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["vm", "list"],
        ["vm", "create"],
        ["vm", "show", "x"],
        ["vm", "watch", "x"],
        ["vm", "terminate", "x"],
        ["share", "list", "x"],
        ["share", "add", "x", "/"],
        ["share", "remove", "x", "y"],
        ["share", "hash", "x", "y"],
        ["session", "apply", "x"],
    ],
    ids=" ".join,
)
def test_without_a_vm_owner_it_is_one_line_and_4(command: list[str], run_dir: Path) -> None:
    result = RUNNER.invoke(app, ["--run-dir", str(run_dir), "--wait", "0.1", *command])
    assert result.exit_code == UNREACHABLE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(run_dir / "owner.sock") in line


def test_a_run_directory_that_is_too_long_is_told_in_one_line() -> None:
    run_dir = f"/tmp/{'x' * 120}"
    result = RUNNER.invoke(app, ["--run-dir", run_dir, "vm", "list"])
    assert result.exit_code == USAGE
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: socket path '{run_dir}/")
    assert "at most 107" in line


def test_a_setting_in_the_environment_that_is_wrong_is_named(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTHOLE_LOG_LEVEL", "loud")
    result = RUNNER.invoke(app, ["--run-dir", str(run_dir), "vm", "list"])
    assert result.exit_code == USAGE
    (line,) = result.stderr.splitlines()
    assert "PORTHOLE_LOG_LEVEL='loud'" in line


def test_health_of_nobody_is_unreachable(run_dir: Path) -> None:
    result = RUNNER.invoke(app, ["--wait", "0.1", "health", f"unix:{run_dir}/no.sock"])
    assert result.exit_code == UNREACHABLE
    assert len(result.stderr.splitlines()) == 1


def test_health_waits_for_a_service_that_is_not_up_yet(run_dir: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = HealthServicer()
    servicer.set("", HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(servicer, server)

    def start() -> None:
        server.add_insecure_port(f"unix:{run_dir}/late.sock")  # listens at once
        server.start()

    starts = threading.Timer(0.5, start)
    starts.start()
    try:
        result = RUNNER.invoke(app, ["--wait", "30", "health", f"unix:{run_dir}/late.sock"])
    finally:
        starts.join()
        server.stop(None).wait()
    assert (result.exit_code, result.stdout) == (OK, "SERVING\n"), result.stderr


def test_an_empty_id_of_a_vm_is_no_id(run_dir: Path) -> None:
    result = RUNNER.invoke(app, ["--run-dir", str(run_dir), "vm", "show", ""])
    assert result.exit_code == USAGE
    assert "'' is not the id of a VM" in result.stderr
    assert "`porthole vm list`" in result.stderr


def test_the_version_is_told_without_services(run_dir: Path) -> None:
    flags = ["--run-dir", str(run_dir), "--wait", "0.1"]
    result = RUNNER.invoke(app, [*flags, "version"])
    assert result.exit_code == OK
    assert result.stdout.startswith(f"porthole {SOFTWARE_VERSION}")
    result = RUNNER.invoke(app, [*flags, "version", "--json"])
    document = json.loads(result.stdout)
    assert document == {
        "porthole": SOFTWARE_VERSION,
        "api_versions": ["v1"],
        "native_fast_path": fastpath.status,
        "services": {},
    }


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
    assert document["handshake"] == "valid"
    (vm,) = document["vms"]
    assert (vm["vm_id"], vm["valid"], vm["token"], vm["devices"]) == (VM_ID, True, TOKEN, 1)

    trace.write_text(otlp(handshake()[:-3]))
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    assert result.exit_code == NEGATIVE
    document = json.loads(result.stdout)
    assert document["handshake"] == "FIRST_REQUEST_MISSING"
    assert document["vms"][0]["violations"][0]["rule"] == "FIRST_REQUEST_MISSING"


def test_a_device_may_be_said_to_be_idle(trace: Path) -> None:
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
def test_what_is_no_trace_is_2(tmp_path: Path, content: bytes, said: str) -> None:
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


def test_the_demonstration_empties_no_foreign_directory(tmp_path: Path) -> None:
    # In a process of its own: as root, the demonstration leaves this process's namespaces.
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


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_has_seen_enough_is_no_error(trace: Path, flags: list[str]) -> None:
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

"""The dashboard as a process: what it receives, shows and survives."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from porthole.vmowner.v1 import vm_owner_pb2

from services.cli.exit_codes import NEGATIVE, OK
from services.dashboard.receiver.servicer import TRACES
from services.handshake import events
from services.rpc import tracing
from services.rpc.settings import ServiceSettings
from tests.support.command import PORTHOLE
from tests.support.dashboard import DashboardProcess
from tests.support.handshake_traces import without, wsl2, wslc
from tests.support.house import House, children
from tests.support.otlp_requests import (
    metrics_document,
    metrics_request,
    trace_document,
    trace_request,
    vm_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[2] / "docs" / "dashboard-page.md"


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[DashboardProcess]:
    with DashboardProcess(tmp_path, "--settle-s", "1") as made:
        yield made


def counts(answer: Any) -> dict[str, int]:
    return {verdict: number for verdict, number in answer["counts"].items() if number}


def test_valid_and_broken_handshakes_are_told_apart(dashboard: DashboardProcess) -> None:
    broken = without(wslc(), events.APERTURE_CREATED)
    assert dashboard.post("/v1/traces", trace_request(wsl2(), 1)) == 200
    assert dashboard.post("/v1/traces", trace_request(broken, 2)) == 200
    dashboard.wait_for(lambda answer: counts(answer) == {"valid": 1, "broken": 1})
    found = dashboard.get(f"/vms/{vm_id(2)}")
    assert found["vm"]["rules"] == ["APERTURE_MISSING"]
    assert found["lives"][0]["violations"][0]["missing"][0]["event"] == events.APERTURE_CREATED


def test_the_exporter_of_the_services_reaches_it(
    dashboard: DashboardProcess, run_dir: Path
) -> None:
    tracing.setup("owner", ServiceSettings(run_dir=run_dir, otlp_endpoint=dashboard.grpc))
    with tracing.operation("CreateVm"):
        for _, event in wsl2()[:2]:
            tracing.emit(event)
    tracing.shutdown()
    [row] = dashboard.wait_for(lambda answer: counts(answer) == {"broken": 1})["vms"]
    assert (row["kind"], row["services"], row["spans"]) == ("WSL2", ["owner"], 1)


def test_what_is_malformed_or_too_large_is_refused_and_it_keeps_serving(
    dashboard: DashboardProcess,
) -> None:
    assert dashboard.post("/v1/traces", b"garbage") == 400
    assert dashboard.post("/v1/traces", b"{}", "text/plain") == 415
    assert dashboard.post("/v1/traces", bytes(5 << 20)) == 413
    # A client that goes away in the middle of its body.
    host, _, port = dashboard.http.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/traces HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\nx")
    assert dashboard.post("/v1/traces", trace_request(wsl2(), 1)) == 200
    dashboard.wait_for(lambda answer: counts(answer) == {"valid": 1})


def test_the_command_judges_what_it_shows(dashboard: DashboardProcess) -> None:
    broken = without(wslc(), events.APERTURE_CREATED)
    dashboard.post("/v1/traces", trace_request(wsl2(), 1))
    dashboard.post("/v1/traces", trace_request(broken, 2))

    def verify(number: int) -> subprocess.CompletedProcess[str]:
        url = f"{dashboard.page}/vm/{vm_id(number)}"
        return subprocess.run(
            [*PORTHOLE, "handshake", "verify", url, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )

    valid, other, unknown = verify(1), verify(2), verify(3)
    assert (valid.returncode, other.returncode, unknown.returncode) == (OK, NEGATIVE, NEGATIVE)
    [judged] = json.loads(valid.stdout)["vms"]
    assert (judged["vm_id"], judged["valid"]) == (vm_id(1), True)
    assert "APERTURE_MISSING" in other.stdout
    assert vm_id(3) in unknown.stderr


def test_changes_are_sent_as_they_happen(dashboard: DashboardProcess) -> None:
    with urllib.request.urlopen(f"{dashboard.page}/api/v1/events", timeout=20) as stream:

        def next_event() -> tuple[str, Any]:
            lines: dict[str, str] = {}
            while "data" not in lines:
                key, _, value = stream.readline().decode().partition(": ")
                lines[key] = value.strip()
            return lines["event"], json.loads(lines["data"])

        assert next_event()[0] == "hello"
        dashboard.post("/v1/traces", trace_request(wsl2(), 1))
        name, row = next_event()
        assert (name, row["vm_id"], row["verdict"]) == ("vm", vm_id(1), "valid")
        body = metrics_request(metrics_document(1, [(int(time.time() * 1000), 5)]))
        assert dashboard.post("/v1/metrics", body) == 200
        assert next_event() == ("metrics", {"vm_id": vm_id(1)})
    [series] = dashboard.get(f"/vms/{vm_id(1)}/metrics")["series"]
    assert series["points"][0][1] == 5


def test_what_was_acknowledged_survives_sigkill_and_is_judged_then(tmp_path: Path) -> None:
    with DashboardProcess(tmp_path) as dashboard:
        for number in range(10):
            assert dashboard.post("/v1/traces", trace_request(wsl2(), number)) == 200
        assert dashboard.end(signal.SIGKILL) == -signal.SIGKILL
    with DashboardProcess(tmp_path) as dashboard:
        dashboard.wait_for(lambda answer: counts(answer) == {"valid": 10})


def test_no_process_is_left(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        with DashboardProcess(tmp_path) as dashboard:
            dashboard.post("/v1/traces", trace_request(wsl2(), 1))
            dashboard.wait_for(lambda answer: counts(answer) == {"valid": 1})
            # The file is judged already the second time.
            dashboard.get(f"/vms/{vm_id(1)}")
            workers = children(dashboard.process.pid)
            assert workers
            status = dashboard.end(number)
        assert status == (-number if number == signal.SIGKILL else 0)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, workers
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--listen", "0.0.0.0:0"], 2, "--token-file"),
        (["--nonsense"], 2, "nonsense"),
        (["--help"], 0, "--otlp-grpc"),
    ],
)
def test_flags(flags: list[str], code: int, text: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "dashboard", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code
    assert text in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_or_a_file_that_is_in_use_is_one_line(
    tmp_path: Path, dashboard: DashboardProcess
) -> None:
    command = [sys.executable, "-m", "services.cli.main", "dashboard"]
    taken = dashboard.page.removeprefix("http://")
    for flags, text in (
        (["--database", str(tmp_path / "other.sqlite"), "--listen", taken], "cannot listen on"),
        (["--database", str(tmp_path / "d.sqlite")], "another dashboard has"),
    ):
        ended = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert text in ended.stderr


def test_a_token_is_asked_for_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef")
    with DashboardProcess(tmp_path, "--token-file", str(file)) as dashboard:
        assert dashboard.post("/v1/traces", trace_request(wsl2(), 1)) == 401
        dashboard.token = file.read_text()
        assert counts(dashboard.get("/vms")) == {}


def test_who_may_connect_to_a_unix_socket_needs_no_token(tmp_path: Path, run_dir: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef")
    flags = [
        part
        for name in ("listen", "otlp-grpc", "otlp-http")
        for part in (f"--{name}", f"unix:{run_dir}/{name}.sock")
    ]
    flags += ["--token-file", str(file), "--settle-s", "1"]
    with DashboardProcess(tmp_path, *flags) as dashboard:
        settings = ServiceSettings(run_dir=run_dir, otlp_endpoint=f"unix:{run_dir}/otlp-grpc.sock")
        tracing.setup("owner", settings)
        with tracing.operation("CreateVm"):
            for _, event in wsl2()[:2]:
                tracing.emit(event)
        tracing.shutdown()
        for name, status in (("listen", b"200"), ("otlp-http", b"404")):
            path = run_dir / f"{name}.sock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(
                    b"GET /api/v1/vms HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                )
                answer = b"".join(iter(lambda: client.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 " + status)
        # The same dashboard, over TCP.
        assert dashboard.post("/v1/traces", trace_request(wsl2(), 1)) == 401
        with pytest.raises(urllib.error.HTTPError, match="401"):
            dashboard.get("/vms")
        with grpc.insecure_channel(dashboard.grpc) as channel:
            export: Any = channel.unary_unary(f"/{TRACES}/Export")
            with pytest.raises(grpc.RpcError) as refused:
                export(trace_request(wsl2(), 1))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        dashboard.token = file.read_text()
        [row] = dashboard.wait_for(lambda answer: counts(answer) == {"broken": 1})["vms"]
        assert (row["kind"], row["services"]) == ("WSL2", ["owner"])


def test_it_listens_on_unix_sockets(tmp_path: Path) -> None:
    flags = [f"--{name}=unix:{tmp_path}/{name}.sock" for name in ("listen", "otlp-http")]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "services.dashboard", *flags),
            *("--otlp-grpc", f"unix:{tmp_path}/g.sock"),
            *("--database", str(tmp_path / "d.sqlite")),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/listen.sock")
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert b'{"status":"ok"}' in answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert list(tmp_path.glob("*.sock")) == []


def trace_file(path: Path, *documents: Any) -> Path:
    lines = (json.dumps(document).encode() + b"\n" for document in documents)
    content = b"".join(lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_files_are_shown_as_if_they_had_been_sent(tmp_path: Path) -> None:
    valid = trace_file(tmp_path / "valid.jsonl", trace_document(wsl2(), 1))
    broken = without(wslc(), events.APERTURE_CREATED)
    packed = trace_file(tmp_path / "broken.jsonl.gz", trace_document(broken, 2))
    flags = ("--settle-s", "0", "--load", str(valid), "--load", str(packed))
    with DashboardProcess(tmp_path, *flags) as dashboard:
        dashboard.wait_for(lambda answer: counts(answer) == {"valid": 1, "broken": 1})
    with DashboardProcess(tmp_path, *flags) as again:
        assert counts(again.get("/vms")) == {"valid": 1, "broken": 1}, "nothing is kept twice"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b'{"resourceSpans": []}\n{"resourceSp',
            ["trace.jsonl line 2", "not an ExportTraceServiceRequest"],
        ),
        (b"\x1f\x8bx", ["trace.jsonl", "damaged gzip"]),
        (None, ["trace.jsonl", "No such file"]),
    ],
)
def test_a_file_that_is_no_trace_is_named(
    tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    if content is not None:
        path.write_bytes(content)
    arguments = ["dashboard", "--database", str(tmp_path / "d.sqlite"), "--load", str(path)]
    ended = subprocess.run([*PORTHOLE, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    for word in words:
        assert word in line


async def break_trace(command: str, trace: Path, folder: Path) -> Path:
    """Run a command of the page on a trace; return the file that it wrote."""
    broken = folder / "broken.jsonl"
    process = await asyncio.create_subprocess_shell(
        command.replace("/tmp/broken.jsonl", str(broken)),
        env={**os.environ, "PORTHOLE_TRACE_FILE": str(trace)},
    )
    assert await process.wait() == 0
    return broken


async def test_a_trace_is_broken_as_the_page_of_docs_says(tmp_path: Path, run_dir: Path) -> None:
    [command] = re.findall(r"^\$ (sed .*)$", DOCUMENT.read_text(), re.MULTILINE)
    async with AsyncExitStack() as stack:
        house = House(run_dir)
        await house.start(stack)
        vm = await house.create(vm_owner_pb2.VM_KIND_WSL2, fixed=True)
        await house.stub.TerminateVm(vm_owner_pb2.TerminateVmRequest(vm_id=vm.vm_id))
    broken = await break_trace(command, house.trace_file, tmp_path)
    with DashboardProcess(tmp_path, "--load", str(broken), "--settle-s", "0") as dashboard:
        dashboard.wait_for(lambda answer: counts(answer) == {"broken": 1})
        assert "APERTURE_MISMATCH" in dashboard.get(f"/vms/{vm.vm_id}")["vm"]["rules"]

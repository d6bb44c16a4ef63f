"""The life of a server process: ready line, health, reflection, sockets, SIGTERM in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from porthole.guest.v1.guest_init_pb2_grpc import InitChannelStub

from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from services.rpc.channel import connect
from services.rpc.server import start_server
from tests.unit.rpc.probe_service import SERVICE, Probe, report, servicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def running(*flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A probe process and its ready line; killed if the test has not ended it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.unit.rpc.probe_service", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            yield process, (await process.stdout.readline()).decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def spans(path: Path) -> list[dict[str, Any]]:
    return [
        span
        for line in path.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


async def test_sigterm_ends_it_in_order_and_loses_nothing(run_dir: Path) -> None:
    trace_file = run_dir / "trace.jsonl"
    address = f"unix:{run_dir}/probe.sock"
    async with (
        running(f"--run-dir={run_dir}", f"--trace-file={trace_file}") as (process, ready),
        grpc.aio.insecure_channel(address) as channel,
    ):
        assert ready == f"porthole probe ready on {address}\n"
        peer = await connect(address, InitChannelStub, SERVICE)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        states = [(await watch.read()).status]
        hanging = asyncio.ensure_future(peer.stub.ReportGuestCapabilities(report("hang")))
        await peer.stub.ReportGuestCapabilities(report("before"))

        process.send_signal(signal.SIGTERM)
        states.append((await watch.read()).status)
        # When its parent is killed, a service gets a signal for each thread of the parent.
        process.send_signal(signal.SIGTERM)
        _, stderr = await process.communicate()
        with pytest.raises(UnavailableError) as caught:
            await hanging
        await peer.close()

    serving = health_pb2.HealthCheckResponse
    assert states == [serving.SERVING, serving.NOT_SERVING]
    assert process.returncode == 0
    assert b"on_shutdown" in stderr
    assert b"Traceback" not in stderr
    assert caught.value.reason == "SERVICE_STOPPING"
    assert not (run_dir / "probe.sock").exists()
    names = [span["name"] for span in spans(trace_file)]
    call = f"{SERVICE}/ReportGuestCapabilities"
    assert names == [call, "OnShutdown", call]  # the last one is the call that was cut off


async def test_sigint_before_any_call_ends_it_too(run_dir: Path) -> None:
    async with running(f"--run-dir={run_dir}") as (process, _):
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0


async def test_reflection_lists_the_service_and_describes_it(run_dir: Path) -> None:
    async with (
        running(f"--run-dir={run_dir}"),
        grpc.aio.insecure_channel(f"unix:{run_dir}/probe.sock") as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, described = [item async for item in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_tcp_and_unix_at_once(run_dir: Path) -> None:
    address = f"unix:{run_dir}/deep/down/probe.sock"
    handle = await start_server([address, "127.0.0.1:0"], [servicer(Probe())])
    assert handle.addresses[0] == address
    assert not handle.addresses[1].endswith(":0")
    for text in handle.addresses:
        peer = await connect(text, InitChannelStub, SERVICE)
        assert (await peer.stub.ReportGuestCapabilities(report("fine"))).pool_latched
        await peer.close()
    await handle.stop()


async def test_a_port_is_served_with_a_warning_and_a_socket_without(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    addresses = [f"unix:{run_dir}/probe.sock", "[::1]:0", "localhost:0"]
    handle = await start_server(addresses, [servicer(Probe())])
    _, six, four = handle.addresses
    await handle.stop()
    assert four.startswith("127.0.0.1:")
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(" has no authentication yet")[0] for text in texts] == [six, four]


async def test_a_client_of_localhost_reaches_the_service_and_no_stranger_on_ipv6() -> None:
    service, stranger = Probe(), Probe()
    handle = await start_server(["localhost:0"], [servicer(service)])
    port = handle.addresses[0].rpartition(":")[2]
    other = await start_server([f"[::1]:{port}"], [servicer(stranger)])
    peer = await connect(f"localhost:{port}", InitChannelStub, SERVICE)
    await peer.stub.ReportGuestCapabilities(report("fine"))
    await peer.close()
    await other.stop(0)
    await handle.stop(0)
    assert (service.deadline_s is None, stranger.deadline_s is None) == (False, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.231.0.1", "owner.example"])
async def test_a_port_that_others_can_reach_is_not_served(host: str, run_dir: Path) -> None:
    socket_path = run_dir / "probe.sock"
    with pytest.raises(InvalidArgumentError, match=r"listen on 127\.0\.0\.1:0") as caught:
        await start_server([f"unix:{socket_path}", f"{host}:0"], [servicer(Probe())])
    assert caught.value.reason == "ADDRESS_NOT_LOOPBACK"
    assert not socket_path.exists()


async def test_a_socket_is_its_owners_alone(probe: Probe, run_dir: Path) -> None:
    assert stat.S_IMODE((run_dir / "probe.sock").stat().st_mode) == 0o600


async def test_a_stale_socket_is_replaced(run_dir: Path) -> None:
    path = run_dir / "probe.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    handle = await start_server([f"unix:{path}"], [servicer(Probe())])
    peer = await connect(f"unix:{path}", InitChannelStub, SERVICE)
    await peer.close()
    await handle.stop()
    assert not path.exists()


async def test_a_live_socket_is_not_stolen(probe: Probe, run_dir: Path) -> None:
    address = f"unix:{run_dir}/probe.sock"
    with pytest.raises(FailedPreconditionError, match="a service listens there") as caught:
        await start_server([address], [servicer(Probe())])
    assert caught.value.reason == "ADDRESS_IN_USE"
    peer = await connect(address, InitChannelStub, SERVICE)
    assert (await peer.stub.ReportGuestCapabilities(report("fine"))).pool_latched
    await peer.close()


async def test_a_file_in_the_way_is_not_removed(run_dir: Path) -> None:
    path = run_dir / "probe.sock"
    path.write_text("mine")
    with pytest.raises(FailedPreconditionError, match="not a socket"):
        await start_server([f"unix:{path}"], [servicer(Probe())])
    assert path.read_text() == "mine"


async def test_a_port_in_use_is_named(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPreconditionError, match=f"127.0.0.1:{port}") as caught:
            await start_server([f"127.0.0.1:{port}"], [servicer(Probe())])
    assert caught.value.reason == "ADDRESS_UNUSABLE"


async def test_a_long_path_names_the_limit(run_dir: Path) -> None:
    path = f"{run_dir}/{'x' * 120}.sock"
    with pytest.raises(InvalidArgumentError, match=f"has {len(path)} bytes.*at most 107") as caught:
        await start_server([f"unix:{path}"], [servicer(Probe())])
    assert caught.value.reason == "SOCKET_PATH_TOO_LONG"


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (["--bogus=1"], 2, "unrecognized arguments: --bogus=1"),
        (["--log-level=loud"], 2, "--log-level 'loud': Input should be 'debug'"),
        (["--listen=nowhere"], 2, "--listen 'nowhere': address 'nowhere' is neither"),
        (["--otlp-endpoint=zzz"], 2, "address 'zzz' is neither"),
        ([f"--run-dir=/tmp/{'x' * 120}"], 2, "a Unix socket takes at most 107"),
        (["--listen=0.0.0.0:0"], 1, "services have no authentication yet; listen on 127.0.0.1:0"),
        (["--trace-file=/proc/nowhere/trace"], 1, "/proc/nowhere"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_an_exit_code(
    flags: list[str], code: int, line: str
) -> None:
    async with running(*flags) as (process, ready):
        _, stderr = await process.communicate()
    assert (process.returncode, ready) == (code, "")
    assert stderr.decode().startswith("porthole probe: ")
    assert stderr.decode().count("\n") == 1
    assert line in stderr.decode()


async def test_flags_win_over_the_environment(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTHOLE_RUN_DIR", f"{run_dir}/env")
    monkeypatch.setenv("PORTHOLE_LISTEN", "")
    async with running() as (_, from_environment):
        pass
    async with running("--run-dir", f"{run_dir}/flag") as (_, from_flag):
        pass
    assert f"{run_dir}/env/probe.sock" in from_environment
    assert f"{run_dir}/flag/probe.sock" in from_flag
    assert os.environ["PORTHOLE_RUN_DIR"] == f"{run_dir}/env"

"""Guest init with --channel, as a process: what it serves and reports for a guest's mini_init."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from porthole.guest.v1 import guest_control_pb2 as pb
from porthole.guest.v1 import guest_control_pb2_grpc, guest_init_pb2, guest_init_pb2_grpc

from services.handshake import events
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc.channel import connect
from tests.support.fake_mini_init import (
    POOL,
    RELEASE,
    everything_done,
    failure,
    fake_mini_init,
    output,
)
from tests.support.guest_process import TRACE_ID, TRACEPARENT, VM_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from porthole.guest.v1 import mini_init_pb2

    from tests.support.fake_mini_init import FakeMiniInit

GUEST_INIT = "porthole.guest.v1.GuestInit"
GUEST_CONTROL = "porthole.guest.v1.GuestControl"
COMMAND = pb.Command(arguments=[b"true"])


@asynccontextmanager
async def serving(run_dir: Path) -> AsyncIterator[FakeMiniInit]:
    (run_dir / "cmdline").write_text(f"porthole.vm_id={VM_ID} porthole.traceparent={TRACEPARENT}\n")
    async with fake_mini_init(run_dir / "channel.sock") as guest:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.guest_init"),
            *(f"--channel=unix:{run_dir}/channel.sock", f"--cmdline-file={run_dir}/cmdline"),
            *(f"--listen=unix:{run_dir}/guest-init.sock", f"--trace-file={run_dir}/guest.jsonl"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(120):
                assert b"ready on" in await process.stdout.readline()
                yield guest
        finally:
            process.terminate()
            await process.communicate()
    assert process.returncode == 0


@asynccontextmanager
async def control(run_dir: Path) -> AsyncIterator[guest_control_pb2_grpc.GuestControlAsyncStub]:
    address = f"unix:{run_dir}/guest-init.sock"
    peer = await connect(address, guest_control_pb2_grpc.GuestControlStub, GUEST_CONTROL)
    try:
        yield peer.stub
    finally:
        await peer.close()


async def test_it_reports_what_mini_init_says(run_dir: Path) -> None:
    async with serving(run_dir):
        address = f"unix:{run_dir}/guest-init.sock"
        peer = await connect(address, guest_init_pb2_grpc.GuestInitStub, GUEST_INIT)
        request = guest_init_pb2.GetGuestCapabilitiesRequest()
        answer = await peer.stub.GetGuestCapabilities(request)
        await peer.close()
    assert answer.capabilities.swiotlb_pool == POOL
    assert answer.capabilities.kernel_release == RELEASE
    recorded = parse_otlp_lines((run_dir / "guest.jsonl").read_text(), "guest.jsonl")
    assert [event.vm_id for event in recorded.events if event.name == events.WSLC_READ] == [VM_ID]
    (span,) = (span for span in recorded.spans if span.name == "MiniInit")
    assert span.trace_id == TRACE_ID


async def test_requests_are_passed_on_and_refusals_back(run_dir: Path) -> None:
    async with serving(run_dir) as guest, control(run_dir) as stub:
        mount = pb.MountRequest(fs_type="virtiofs", source=b"tag", target=b"/mnt", read_only=True)
        await stub.Mount(mount)
        assert (await guest.next("mount")).mount == mount
        guest.answer = lambda message: [failure(message.request_id, 16, "it is busy")]
        with pytest.raises(FailedPreconditionError, match="it is busy") as refused:
            await stub.Unmount(pb.UnmountRequest(target=b"/mnt"))
        assert refused.value.metadata == {"errno": "EBUSY"}
        guest.answer = everything_done
        await stub.PowerOff(pb.PowerOffRequest())


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.MountRequest(target=b"mnt"), "target"),
        (pb.MountRequest(target=b"/a\0"), "target"),
        (pb.MountRequest(target=b"/a", directories=[b"b"]), "directories"),
        (pb.MountRequest(target=b"/a", wait_ms=60_001), "wait_ms"),
        (pb.MountRequest(target=b"/a", source=b"\0"), "source"),
    ],
)
async def test_a_wrong_field_is_named(run_dir: Path, request_: pb.MountRequest, field: str) -> None:
    async with serving(run_dir), control(run_dir) as stub:
        with pytest.raises(InvalidArgumentError) as refused:
            await stub.Mount(request_)
    assert refused.value.metadata == {"field": field}


async def test_a_command_runs(run_dir: Path) -> None:
    async with serving(run_dir) as guest, control(run_dir) as stub:

        def answer(message: mini_init_pb2.ToMiniInit) -> list[mini_init_pb2.FromMiniInit]:
            answers = everything_done(message)
            if message.WhichOneof("message") == "run":
                answers.insert(1, output(message.request_id, b"said"))
            return answers

        guest.answer = answer
        call = stub.Run(iter([pb.RunRequest(command=COMMAND)]))
        kinds = [response.WhichOneof("response") async for response in call]
    assert kinds == ["started", "standard_output", "ended"]


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [pb.RunRequest(signal=9)],
        [pb.RunRequest(command=pb.Command())],
        [pb.RunRequest(command=pb.Command(arguments=[b"a\0"]))],
        [pb.RunRequest(command=pb.Command(arguments=[b"a"], working_directory=b"b"))],
    ],
)
async def test_a_call_without_a_command_is_refused(
    run_dir: Path, requests: list[pb.RunRequest]
) -> None:
    async with serving(run_dir), control(run_dir) as stub:
        with pytest.raises((InvalidArgumentError, grpc.aio.AioRpcError)):
            await anext(aiter(stub.Run(iter(requests))))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--channel=127.0.0.1:1"], "is not unix:/path"),
        (["--channel=unix:/x", "--publish-dir=/sys"], "--publish-dir is for the running kernel"),
        (["--channel=unix:/x", "--kernel-release=6.1.0"], "--kernel-release is for the running"),
    ],
)
async def test_a_channel_excludes_the_running_kernel(flags: list[str], text: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.guest_init", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode != 0
    assert text in stderr.decode()

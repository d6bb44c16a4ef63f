"""Guest init as a process: it serves, reports, and survives every answer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from porthole.guest.v1 import guest_init_pb2 as pb
from porthole.guest.v1 import guest_init_pb2_grpc as pb_grpc

from services.handshake import events
from services.handshake.errors import InvalidArgumentError, PortholeError, UnavailableError
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc.channel import connect
from services.rpc.server import Servicer, start_server
from services.rpc.version import service_version
from tests.support.guest_process import RELEASE, TRACE_ID, VM_ID, guest_init, publish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    import grpc

    from services.handshake.trace.recorded import TraceEvent

    Context = grpc.aio.ServicerContext[Any, Any]

GUEST_INIT = "porthole.guest.v1.GuestInit"
INIT_CHANNEL = "porthole.guest.v1.InitChannel"


class Owner(pb_grpc.InitChannelServicer):
    """Keeps every report; answers the first ones with errors."""

    def __init__(self, errors: Sequence[PortholeError] = ()) -> None:
        self.reports: asyncio.Queue[pb.ReportGuestCapabilitiesRequest] = asyncio.Queue()
        self.trace_ids: list[str] = []
        self._errors = list(errors)

    async def GetVersion(  # noqa: N802
        self, request: pb.InitChannelGetVersionRequest, context: Context
    ) -> pb.InitChannelGetVersionResponse:
        return pb.InitChannelGetVersionResponse(version=service_version(INIT_CHANNEL))

    async def ReportGuestCapabilities(  # noqa: N802
        self, request: pb.ReportGuestCapabilitiesRequest, context: Context
    ) -> pb.ReportGuestCapabilitiesResponse:
        metadata = dict(context.invocation_metadata() or ())
        self.trace_ids.append(str(metadata["traceparent"]).split("-")[1])
        self.reports.put_nowait(request)
        if self._errors:
            raise self._errors.pop(0)
        return pb.ReportGuestCapabilitiesResponse(pool_latched=True)


@asynccontextmanager
async def listening(owner: Owner, run_dir: Path) -> AsyncIterator[str]:
    address = f"unix:{run_dir}/init.sock"
    servicer = Servicer(pb_grpc.add_InitChannelServicer_to_server, owner, INIT_CHANNEL)
    handle = await start_server([address], [servicer])
    yield address
    await handle.stop(0)


async def ask(run_dir: Path) -> pb.GetGuestCapabilitiesResponse:
    peer = await connect(f"unix:{run_dir}/guest-init.sock", pb_grpc.GuestInitStub, GUEST_INIT)
    try:
        return await peer.stub.GetGuestCapabilities(pb.GetGuestCapabilitiesRequest())
    finally:
        await peer.close()


def reads(run_dir: Path) -> list[TraceEvent]:
    recorded = parse_otlp_lines((run_dir / "guest.jsonl").read_text(), "guest.jsonl")
    return [event for event in recorded.events if event.name == events.WSLC_READ]


async def test_every_read_that_it_answers_is_in_the_trace_of_its_vm(run_dir: Path) -> None:
    async with guest_init(run_dir):
        await ask(run_dir)
        publish(run_dir)
        await ask(run_dir)
    first, second = reads(run_dir)
    assert (first.numbers, second.numbers) == ((0, 0), (0x3C000000, 67108864))
    assert {(event.vm_id, event.span.trace_id) for event in (first, second)} == {(VM_ID, TRACE_ID)}


async def test_a_read_of_a_guest_that_reports_by_itself_is_no_step_of_the_handshake(
    run_dir: Path,
) -> None:
    publish(run_dir)
    owner = Owner()
    async with listening(owner, run_dir) as address, guest_init(run_dir, f"--owner={address}"):
        await owner.reports.get()
        assert (await ask(run_dir)).capabilities.swiotlb_pool.base == 0x3C000000
    assert reads(run_dir) == []


async def test_it_answers_with_what_is_published_now(run_dir: Path) -> None:
    async with guest_init(run_dir):
        before = (await ask(run_dir)).capabilities
        publish(run_dir)
        after = (await ask(run_dir)).capabilities
    assert not before.HasField("swiotlb_pool")
    assert (after.swiotlb_pool.base, after.swiotlb_pool.size_bytes) == (0x3C000000, 67108864)
    assert after.kernel_release == before.kernel_release == RELEASE
    assert after.HasField("seccomp_user_notification")


async def test_it_reports_once_when_it_has_an_owner(run_dir: Path) -> None:
    publish(run_dir)
    owner = Owner()
    async with listening(owner, run_dir) as address, guest_init(run_dir, f"--owner={address}"):
        pushed = (await owner.reports.get()).capabilities
        pulled = (await ask(run_dir)).capabilities
    assert pushed == pulled
    assert owner.reports.empty()
    assert owner.trace_ids == [TRACE_ID]


async def test_it_waits_for_an_owner_that_is_not_up_yet(run_dir: Path) -> None:
    publish(run_dir)
    owner = Owner()
    async with guest_init(run_dir, f"--owner=unix:{run_dir}/init.sock") as process:
        assert process.stderr is not None
        async for line in process.stderr:
            if b"waiting for" in line:
                break
        async with listening(owner, run_dir):
            pushed = await owner.reports.get()
    assert pushed.capabilities.swiotlb_pool.base == 0x3C000000


async def test_it_repeats_a_retryable_failure(run_dir: Path) -> None:
    owner = Owner([UnavailableError("BUSY", "not now")])
    async with listening(owner, run_dir) as address, guest_init(run_dir, f"--owner={address}"):
        first, second = await owner.reports.get(), await owner.reports.get()
    assert first == second
    assert owner.trace_ids == [TRACE_ID, TRACE_ID]


async def test_a_refused_pool_is_logged_and_the_guest_lives(run_dir: Path) -> None:
    publish(run_dir, base="0x10000000000\n")
    owner = Owner([InvalidArgumentError("SWIOTLB_ABOVE_4G", "the pool ends above 4 GiB")])
    async with (
        listening(owner, run_dir) as address,
        guest_init(run_dir, f"--owner={address}") as process,
    ):
        await owner.reports.get()
        assert process.stderr is not None
        async for line in process.stderr:
            if b"refused" in line:
                break
        answer = await ask(run_dir)
    assert b"the pool ends above 4 GiB; running without a pool" in line
    assert answer.capabilities.swiotlb_pool.base == 1 << 40
    assert owner.reports.empty()
    assert process.returncode == 0


async def test_it_ends_while_it_still_waits_for_its_owner(run_dir: Path) -> None:
    async with guest_init(run_dir, f"--owner=unix:{run_dir}/init.sock") as process:
        process.terminate()
        _, stderr = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in stderr

"""Calls between real servers and channels: errors, deadlines, streams, versions, waiting."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from porthole.guest.v1 import guest_init_pb2 as pb
from porthole.guest.v1.guest_init_pb2_grpc import GuestInitStub, InitChannelStub

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
    UnavailableError,
)
from services.rpc.channel import Peer, connect
from services.rpc.interceptor import INTERNAL_TEXT
from services.rpc.server import Servicer, start_server
from tests.unit.rpc.probe_service import ERRORS, SERVICE, Probe, report, servicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from porthole.guest.v1.guest_init_pb2_grpc import InitChannelAsyncStub

    ProbePeer = Peer[InitChannelAsyncStub]


async def test_a_call_gets_its_answer_and_the_peers_version(peer: ProbePeer) -> None:
    answer = await peer.stub.ReportGuestCapabilities(report("fine"))
    assert answer.pool_latched
    assert (peer.version.service, list(peer.version.api_versions)) == (SERVICE, ["v1"])


@pytest.mark.parametrize("kind", sorted(ERRORS))
async def test_every_kind_of_error_arrives_as_what_it_was(peer: ProbePeer, kind: str) -> None:
    with pytest.raises(PortholeError) as caught:
        await peer.stub.ReportGuestCapabilities(report(kind))
    assert type(caught.value) is ERRORS[kind]
    assert caught.value.reason == "PROBE_REASON"
    assert caught.value.message == f"it failed with {kind}"
    assert caught.value.metadata == {"bound": "4096"}


@pytest.mark.parametrize("letter", ["a", "ä", "😀", "\n", "\0"])
async def test_a_message_that_quotes_megabytes_of_a_guest_still_arrives(
    peer: ProbePeer, letter: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await peer.stub.ReportGuestCapabilities(report(f"echo:{letter * 200_000}"))
    assert caught.value.reason == "PROBE_ECHO"
    assert caught.value.message.startswith(f"echo:{letter}")
    assert len(caught.value.message.encode()) <= 1024


async def test_an_unforeseen_exception_is_logged_and_the_caller_learns_only_where(
    peer: ProbePeer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PortholeError) as caught:
        await peer.stub.ReportGuestCapabilities(report("crash"))
    assert caught.value.reason == "PEER_FAILED"
    assert caught.value.message == f"{SERVICE} at {peer.address}: {INTERNAL_TEXT}"
    assert caught.value.metadata == {"code": "INTERNAL"}
    assert "a secret of the implementation" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_raw_grpc_client_sees_status_and_error_info(probe: Probe, run_dir: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{run_dir}/probe.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InitChannelStub(channel).ReportGuestCapabilities(report("NOT_FOUND"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    keys = [key for key, _ in caught.value.trailing_metadata() or ()]
    assert "grpc-status-details-bin" in keys


async def test_every_unary_call_has_a_deadline(probe: Probe, peer: ProbePeer) -> None:
    await peer.stub.ReportGuestCapabilities(report("fine"))
    assert probe.deadline_s == pytest.approx(10, abs=1)  # gRPC rounds


async def test_a_callers_own_deadline_wins(probe: Probe, peer: ProbePeer) -> None:
    with pytest.raises(DeadlineExceededError) as caught:
        await peer.stub.ReportGuestCapabilities(report("hang"), timeout=0.05)
    assert caught.value.reason == "PEER_DEADLINE_EXCEEDED"
    assert f"{SERVICE} at {peer.address}: " in caught.value.message
    assert probe.hanging.is_set()


async def test_cancelling_a_call_is_a_cancellation_here(probe: Probe, peer: ProbePeer) -> None:
    async def call() -> None:
        await peer.stub.ReportGuestCapabilities(report("hang"))

    task = asyncio.create_task(call())
    await probe.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_peer_that_stops_is_unavailable(run_dir: Path) -> None:
    address = f"unix:{run_dir}/probe.sock"
    handle = await start_server([address], [servicer(Probe())])
    peer = await connect(address, InitChannelStub, SERVICE)
    await handle.stop(0)
    with pytest.raises(UnavailableError) as caught:
        await peer.stub.ReportGuestCapabilities(report("fine"))
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert f"{SERVICE} at {address}: " in caught.value.message
    assert caught.value.retryable
    await peer.close()


async def test_a_peer_that_restarts_is_reached_again(run_dir: Path) -> None:
    address = f"unix:{run_dir}/probe.sock"
    handle = await start_server([address], [servicer(Probe())])
    peer = await connect(address, InitChannelStub, SERVICE)
    await handle.stop(0)
    handle = await start_server([address], [servicer(Probe())])
    answer = await peer.stub.ReportGuestCapabilities(report("fine"), wait_for_ready=True)
    assert answer.pool_latched
    await peer.close()
    await handle.stop(0)


async def test_a_peer_that_is_not_up_yet_is_waited_for(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    address = f"unix:{run_dir}/probe.sock"
    line = f"waiting for {SERVICE} at {address}"
    said = asyncio.Event()

    def notice(_: logging.LogRecord) -> bool:
        said.set()
        return True

    caplog.handler.addFilter(notice)
    waiting = asyncio.create_task(connect(address, InitChannelStub, SERVICE))
    async with asyncio.timeout(10):
        await said.wait()
    caplog.handler.removeFilter(notice)
    handle = await start_server([address], [servicer(Probe())])
    peer = await waiting
    assert caplog.messages.count(line) == 1
    assert (await peer.stub.ReportGuestCapabilities(report("fine"))).pool_latched
    await peer.close()
    await handle.stop(0)


async def test_a_peer_that_never_comes_up_is_named(run_dir: Path) -> None:
    address = f"unix:{run_dir}/nobody.sock"
    with pytest.raises(UnavailableError, match="did not come up within") as caught:
        await connect(address, InitChannelStub, SERVICE, wait_s=0.3)
    assert caught.value.reason == "PEER_UNAVAILABLE"


async def test_a_socket_that_speaks_garbage_is_an_error_within_the_deadline(run_dir: Path) -> None:
    async def talk_rubbish(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0garbage" * 64)
        await writer.drain()
        writer.close()

    path = run_dir / "garbage.sock"
    async with await asyncio.start_unix_server(talk_rubbish, path):
        with pytest.raises(UnavailableError):
            await connect(f"unix:{path}", InitChannelStub, SERVICE, wait_s=0.5)


async def test_a_version_mismatch_names_both_sides(run_dir: Path) -> None:
    address = f"unix:{run_dir}/probe.sock"
    handle = await start_server([address], [servicer(Probe(api_versions=("v7", "v8")))])
    with pytest.raises(FailedPreconditionError, match=r"v7, v8.*porthole 0\..*v1") as caught:
        await connect(address, InitChannelStub, SERVICE)
    assert caught.value.reason == "API_VERSION_MISMATCH"
    assert (caught.value.metadata["ours"], caught.value.metadata["theirs"]) == ("v1", "v7, v8")
    await handle.stop(0)


async def test_the_wrong_service_is_a_version_mismatch(probe: Probe, run_dir: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="does not serve porthole"):
        await connect(f"unix:{run_dir}/probe.sock", GuestInitStub, "porthole.guest.v1.GuestInit")


class Ticker:
    """A stream of answers that ends, fails or hangs after the third."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def tick(
        self, request: pb.ReportGuestCapabilitiesRequest, _: object
    ) -> AsyncIterator[pb.ReportGuestCapabilitiesResponse]:
        try:
            for _number in range(3):
                yield pb.ReportGuestCapabilitiesResponse(pool_latched=True)
            if request.capabilities.kernel_release == "fail":
                raise NotFoundError("VM_UNKNOWN", "the VM is gone")
            if request.capabilities.kernel_release == "hang":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    def servicer(self) -> Servicer:
        handler = grpc.unary_stream_rpc_method_handler(
            self.tick,
            pb.ReportGuestCapabilitiesRequest.FromString,
            pb.ReportGuestCapabilitiesResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("porthole.test.v1.Ticker", {"Tick": handler})

        def add(_: object, server: Any) -> None:
            server.add_generic_rpc_handlers((service,))

        return Servicer(add, self, "porthole.test.v1.Ticker")


class TickerStub:
    """The stub that grpc_tools would generate for Ticker, and a version that passes the check."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        init = InitChannelStub(channel)
        self.GetVersion = init.GetVersion
        self.tick: Any = channel.unary_stream(
            "/porthole.test.v1.Ticker/Tick",
            pb.ReportGuestCapabilitiesRequest.SerializeToString,
            pb.ReportGuestCapabilitiesResponse.FromString,
        )


@pytest.fixture
async def ticker(run_dir: Path) -> AsyncIterator[tuple[Ticker, TickerStub]]:
    ticker = Ticker()
    address = f"unix:{run_dir}/ticker.sock"
    handle = await start_server([address], [ticker.servicer(), servicer(Probe())])
    peer = await connect(address, TickerStub, SERVICE)
    yield ticker, peer.stub
    await peer.close()
    await handle.stop(0)


async def test_a_stream_ends(ticker: tuple[Ticker, TickerStub]) -> None:
    items = [item.pool_latched async for item in ticker[1].tick(report("end"))]
    assert items == [True, True, True]


async def test_a_stream_that_fails_gives_its_items_and_then_its_error(
    ticker: tuple[Ticker, TickerStub],
) -> None:
    items = []

    async def read() -> None:
        async for item in ticker[1].tick(report("fail")):
            items.append(item.pool_latched)

    with pytest.raises(NotFoundError, match="the VM is gone") as caught:
        await read()
    assert (items, caught.value.reason) == ([True, True, True], "VM_UNKNOWN")


async def test_a_stream_that_its_reader_drops_is_closed_in_the_service(
    ticker: tuple[Ticker, TickerStub], caplog: pytest.LogCaptureFixture
) -> None:
    service, stub = ticker
    call = stub.tick(report("hang"))
    async for _item in call:
        break
    call.cancel()
    async with asyncio.timeout(5):
        await service.closed.wait()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

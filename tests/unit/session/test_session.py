"""A WSLC session between a real guest init and an owner: pull, forward, trace, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.handshake import events
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc import tracing
from services.rpc.settings import ServiceSettings
from services.session import apply_guest_capabilities, open_session
from tests.support.guest_process import (
    RELEASE,
    TRACE_ID,
    TRACEPARENT,
    VM_ID,
    guest_init,
    publish,
)
from tests.support.small_owner import SmallOwner, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.handshake.trace.recorded import TraceEvent


@pytest.fixture
def trace_file(run_dir: Path) -> Iterator[Path]:
    path = run_dir / "session.jsonl"
    tracing.setup("session", ServiceSettings(run_dir=run_dir, trace_file=path))
    yield path
    tracing.shutdown()


def recorded(trace_file: Path) -> list[TraceEvent]:
    return list(parse_otlp_lines(trace_file.read_text(), "f").events)


@pytest.fixture
def owner(run_dir: Path) -> SmallOwner:
    return SmallOwner(
        pb.Vm(
            vm_id=VM_ID,
            kind=pb.VM_KIND_WSLC,
            state=pb.VM_STATE_BOOTED,
            guest_init_address=f"unix:{run_dir}/guest-init.sock",
            traceparent=TRACEPARENT,
        )
    )


async def test_it_forwards_what_the_guest_published(
    run_dir: Path, owner: SmallOwner, trace_file: Path
) -> None:
    publish(run_dir)
    async with guest_init(run_dir), serving(owner, run_dir) as address:
        first = await apply_guest_capabilities(address, VM_ID)
        second = await apply_guest_capabilities(address, VM_ID)
    assert (first.already_applied, second.already_applied) == (False, True)
    assert first.swiotlb_option == "swiotlb=0x3c000000,67108864"
    request = pb.ApplyGuestCapabilitiesRequest.FromString(owner.applied[0])
    assert request.vm_id == VM_ID
    assert request.capabilities.kernel_release == RELEASE
    pool = request.capabilities.swiotlb_pool
    assert (pool.base, pool.size_bytes) == (0x3C000000, 67108864)


async def test_its_event_and_its_calls_are_in_the_trace_of_the_vm(
    run_dir: Path, owner: SmallOwner, trace_file: Path
) -> None:
    publish(run_dir)
    async with guest_init(run_dir), serving(owner, run_dir) as address:
        with tracing.operation("Command"):
            await apply_guest_capabilities(address, VM_ID)
    [read] = recorded(trace_file)
    assert read.name == events.WSLC_READ
    assert (read.vm_id, read.span.trace_id) == (VM_ID, TRACE_ID)
    assert read.numbers == (0x3C000000, 67108864)
    assert owner.trace_ids == [TRACE_ID]
    assert f'"traceId":"{TRACE_ID}"' in (run_dir / "guest.jsonl").read_text()


async def test_no_pool_is_forwarded_as_no_pool(
    run_dir: Path, owner: SmallOwner, trace_file: Path
) -> None:
    async with guest_init(run_dir), serving(owner, run_dir) as address:
        await apply_guest_capabilities(address, VM_ID)
    request = pb.ApplyGuestCapabilitiesRequest.FromString(owner.applied[0])
    assert not request.capabilities.HasField("swiotlb_pool")
    [read] = recorded(trace_file)
    assert read.numbers == (0, 0)


async def test_reading_applies_nothing(run_dir: Path, owner: SmallOwner) -> None:
    publish(run_dir)
    async with (
        guest_init(run_dir),
        serving(owner, run_dir) as address,
        open_session(address) as session,
    ):
        capabilities = await session.read_guest_capabilities(VM_ID)
    assert capabilities.swiotlb_pool.base == 0x3C000000
    assert owner.applied == []


async def test_a_refusal_of_the_owner_reaches_the_caller(run_dir: Path, owner: SmallOwner) -> None:
    owner.refusal = InvalidArgumentError("SWIOTLB_OUTSIDE_RAM", "outside", bound=4096)
    async with guest_init(run_dir), serving(owner, run_dir) as address:
        with pytest.raises(InvalidArgumentError) as caught:
            await apply_guest_capabilities(address, VM_ID)
    assert caught.value.reason == "SWIOTLB_OUTSIDE_RAM"


async def test_an_unknown_vm(run_dir: Path, owner: SmallOwner) -> None:
    async with serving(owner, run_dir) as address:
        with pytest.raises(NotFoundError, match="there is no VM nobody"):
            await apply_guest_capabilities(address, "nobody")


async def test_a_vm_that_has_not_booted(run_dir: Path, owner: SmallOwner) -> None:
    assert owner.vm is not None
    owner.vm.guest_init_address = ""
    async with serving(owner, run_dir) as address:
        with pytest.raises(FailedPreconditionError) as caught:
            await apply_guest_capabilities(address, VM_ID)
    assert caught.value.reason == "VM_NOT_BOOTED"
    assert owner.applied == []


async def test_a_guest_init_that_is_not_there(run_dir: Path, owner: SmallOwner) -> None:
    async with serving(owner, run_dir) as address:
        with pytest.raises(UnavailableError) as caught:
            await apply_guest_capabilities(address, VM_ID, wait_s=10)
    assert caught.value.reason == "GUEST_INIT_UNREACHABLE"
    assert owner.applied == []

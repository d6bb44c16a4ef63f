"""Reading a guest's capabilities by way of the owner, and waiting for the guest init of a VM."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities

from services.handshake import events
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from services.vm_owner import clients
from services.vm_owner.record import VmKind
from services.vm_owner.shares import ShareSpec
from services.vm_owner.states import VmState
from tests.support.owner_peers import PEER_WAIT_S, POOL

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event
    from tests.support.owner_peers import Rig

NEWER = GuestCapabilities(swiotlb_pool=POOL).SerializeToString() + b"\x82\x7d\x03new"
"""With field 2000, wire type 2: a value that a newer kernel might publish."""


async def test_the_answer_of_guest_init_comes_whole_and_is_in_the_trace(
    rig: Rig, trace: list[Event]
) -> None:
    vm = await rig.owner.create(rig.vm_spec(VmKind.WSLC))
    rig.machine.capabilities = GuestCapabilities.FromString(NEWER)
    trace.clear()
    report = await rig.owner.read_capabilities(vm.vm_id)
    assert report.message == NEWER
    assert trace == [events.wslc_read(vm.vm_id, report.as_announced())]
    assert (report.base, report.size_bytes) == (POOL.base, POOL.size_bytes)
    assert (vm.record.state, vm.record.token) == (VmState.BOOTED, None)


async def test_created_means_that_guest_init_answers(rig: Rig) -> None:
    await rig.servers["guest init"].stop(0)
    creating = asyncio.create_task(rig.owner.create(rig.vm_spec(VmKind.WSLC)))
    while not rig.machine.boots:  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    [vm] = rig.owner.all()
    assert (vm.record.state, creating.done()) == (VmState.CREATED, False)
    await rig.start_guest_init()
    assert (await creating).record.state is VmState.BOOTED
    await rig.owner.read_capabilities(vm.vm_id)


async def test_a_guest_init_that_never_answers_is_named_and_nothing_is_left(rig: Rig) -> None:
    await rig.servers["guest init"].stop(0)
    named = rf"guest-init\.sock.*within {PEER_WAIT_S:g} s"
    with pytest.raises(UnavailableError, match=named) as away:
        await rig.owner.create(rig.vm_spec(VmKind.WSLC))
    assert away.value.reason == "GUEST_INIT_UNREACHABLE"
    assert rig.owner.all() == []
    assert rig.script.calls() == ["Boot", "PowerOff"]


async def test_a_guest_init_that_is_gone_and_one_that_comes_back(rig: Rig) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec(VmKind.WSLC))).vm_id
    await rig.servers["guest init"].stop(0)
    with pytest.raises(UnavailableError, match=vm_id) as away:
        await rig.owner.read_capabilities(vm_id)
    assert away.value.reason == "GUEST_INIT_UNREACHABLE"
    await rig.start_guest_init()
    async with asyncio.timeout(10):
        while True:
            try:
                await rig.owner.read_capabilities(vm_id)
                break
            except UnavailableError:
                await asyncio.sleep(0.05)  # until gRPC has connected again


async def test_a_guest_init_that_hangs_holds_up_only_its_reader(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clients.READ_DEADLINE_S < 10  # the default deadline of a caller
    monkeypatch.setattr(clients, "READ_DEADLINE_S", 0.3)
    vm_id = (await rig.owner.create(rig.vm_spec(VmKind.WSLC))).vm_id
    report = await rig.owner.read_capabilities(vm_id)
    rig.script.gates["GetGuestCapabilities"] = asyncio.Event()
    reading = asyncio.create_task(rig.owner.read_capabilities(vm_id))
    await rig.script.reached.wait()
    await rig.owner.apply_capabilities(vm_id, report)
    await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path)))
    with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s") as late:
        await reading
    assert late.value.reason == "GUEST_INIT_SILENT"


async def test_a_vm_that_ends_during_a_read(rig: Rig) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec(VmKind.WSLC))).vm_id
    rig.script.gates["GetGuestCapabilities"] = asyncio.Event()
    reading = asyncio.create_task(rig.owner.read_capabilities(vm_id))
    await rig.script.reached.wait()
    await rig.owner.terminate(vm_id)
    with pytest.raises(FailedPreconditionError, match="GetGuestCapabilities") as ended:
        await reading
    assert ended.value.reason in ("VM_SHUTTING_DOWN", "VM_TERMINATED")
    with pytest.raises(FailedPreconditionError) as late:
        await rig.owner.read_capabilities(vm_id)
    assert late.value.reason == "VM_TERMINATED"


async def test_a_wsl2_guest_reports_by_itself_and_is_not_asked(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec(VmKind.WSL2))
    with pytest.raises(FailedPreconditionError, match="reports by itself") as refused:
        await rig.owner.read_capabilities(vm.vm_id)
    assert refused.value.reason == "WRONG_VM_KIND"
    assert "GetGuestCapabilities" not in rig.script.calls()


async def test_an_unknown_vm(rig: Rig) -> None:
    with pytest.raises(NotFoundError) as refused:
        await rig.owner.read_capabilities("nope")
    assert refused.value.reason == "VM_NOT_FOUND"

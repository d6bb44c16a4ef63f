"""The trace checker on traces of real processes: valid ones, changed ones, and an odd guest's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities, SwiotlbPool
from porthole.machine.v1 import machine_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines
from services.handshake.trace.recorded import Recording
from services.handshake.trace.table import CLAUSES
from services.rpc.server import Servicer, start_server
from services.session import apply_guest_capabilities
from tests.support.house import MACHINE
from tests.support.owner_peers import FakeMachine, Script
from tests.support.trace_mutants import mutants

if TYPE_CHECKING:
    from tests.support.house import House

MIB = 1 << 20
WSL2 = vm_owner_pb2.VM_KIND_WSL2
WSLC = vm_owner_pb2.VM_KIND_WSLC
OLD = "5.15.167.4-microsoft-standard-WSL2"


def broken(recording: Recording) -> set[str]:
    try:
        verdicts = verify(recording)
    except InvalidArgumentError:
        return {"TRACE_WITHOUT_VM"}
    return {item.rule for verdict in verdicts for item in verdict.violations}


def recorded(house: House, vm_id: str) -> Recording:
    """The recording of one VM: its events, and the spans of its trace."""
    whole = parse_otlp_lines(house.trace_file.read_text(), house.trace_file.name)
    events = tuple(event for event in whole.events if event.vm_id == vm_id)
    traces = {event.span.trace_id for event in events}
    return Recording(tuple(s for s in whole.spans if s.trace_id in traces), events)


@pytest.mark.parametrize("release", ["", OLD], ids=["pool", "old kernel"])
@pytest.mark.parametrize("kind", [WSL2, WSLC], ids=["WSL2", "WSLC"])
async def test_no_change_of_a_recorded_handshake_is_valid(
    house: House, kind: vm_owner_pb2.VmKind.ValueType, release: str
) -> None:
    machine = vm_owner_pb2.EmbeddedMachine(kernel_release=release)
    vm = await house.create(kind, machine=machine, fixed=True)
    if kind == WSLC:
        await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
    await house.add_share(vm.vm_id, "added")
    assert await house.guest_reads(vm, "added")
    await house.terminate(vm.vm_id)
    valid = recorded(house, vm.vm_id)
    assert broken(valid) == set()
    reads = dict.fromkeys(read for clause in CLAUSES for read in clause.reads)
    passed = [
        label for read in reads for label, mutant in mutants(read, valid) if not broken(mutant)
    ]
    assert passed == []


async def test_the_trace_of_a_vm_that_has_just_been_created_is_whole(house: House) -> None:
    for _ in range(3):
        vm = await house.create(WSL2)
        assert broken(recorded(house, vm.vm_id)) == set()


async def test_a_guest_announces_another_pool_than_it_was_asked_for(house: House) -> None:
    guest = FakeMachine(Script(), f"unix:{house.run_dir}/nowhere.sock")
    guest.capabilities = GuestCapabilities(
        swiotlb_pool=SwiotlbPool(base=MIB, size_bytes=MIB), kernel_release="6.18.26.3-microsoft"
    )
    address = f"unix:{house.run_dir}/odd.sock"
    add = machine_pb2_grpc.add_MachineServicer_to_server
    server = await start_server([address], [Servicer(add, guest, MACHINE)])
    try:
        request = vm_owner_pb2.CreateVmRequest(kind=WSL2)
        request.external.address = address
        vm = (await house.stub.CreateVm(request, timeout=60)).vm
        [boot] = guest.boots
        assert "hv_pci_swiotlb=67108864" in boot.kernel_command_line
        assert (vm.latched_pool.base, vm.latched_pool.size_bytes) == (MIB, MIB)
        [warning] = vm.warnings
        assert warning.id == "PoolNotAsRequested"
        assert str(MIB) in warning.text
        assert str(64 * MIB) in warning.text
        await house.terminate(vm.vm_id)
        await asyncio.gather(*guest.reports)
    finally:
        await server.stop(0)
    assert "POOL_NOT_AS_REQUESTED" in broken(recorded(house, vm.vm_id))

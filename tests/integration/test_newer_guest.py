"""A guest that publishes a value which no service here knows: it reaches the device host as it is.

Owner and device host are real processes. The machine and guest init are the test's own, because our
guest init reads only what it knows.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.guest.v1 import guest_init_pb2_grpc
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.machine.v1 import machine_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2

from services.rpc.channel import connect
from services.rpc.server import Servicer, start_server
from services.vm_owner.clients import DEVICE_HOST, GUEST_INIT, MACHINE
from tests.support.owner_peers import POOL, FakeGuestInit, FakeMachine, Script
from tests.support.reports import UNKNOWN_FIELD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.house import House


def newer() -> bytes:
    """Return capabilities with a field of the pool and one of their own that nobody knows."""
    pool = POOL.SerializeToString() + b"\xe8\x04\x04"  # field 77
    release = GuestCapabilities(kernel_release="7.1.0-1").SerializeToString()
    return b"\x0a" + bytes([len(pool)]) + pool + release + UNKNOWN_FIELD


@asynccontextmanager
async def newer_machine(run_dir: Path, raw: bytes) -> AsyncIterator[str]:
    """Serve a machine and its guest init, which publishes `raw`; return the machine's address."""
    address, init_address = (f"unix:{run_dir}/newer-{name}.sock" for name in ("machine", "init"))
    machine = FakeMachine(Script(), init_address)
    machine.capabilities = GuestCapabilities.FromString(raw)
    services = (
        (address, machine_pb2_grpc.add_MachineServicer_to_server, machine, MACHINE),
        (
            init_address,
            guest_init_pb2_grpc.add_GuestInitServicer_to_server,
            FakeGuestInit(machine),
            GUEST_INIT,
        ),
    )
    async with AsyncExitStack() as stack:
        for where, add, servicer, name in services:
            server = await start_server([where], [Servicer(add, servicer, name)])
            stack.push_async_callback(server.stop, 0)
        yield address
        for task in machine.reports:
            await task


async def on_device_host(house: House, device: vm_owner_pb2.Device, vm_id: str) -> bytes:
    """Return the capabilities that the device host has of a device's VM, serialized."""
    address = f"unix:{house.run_dir}/devicehost.sock"
    peer = await connect(address, device_host_pb2_grpc.DeviceHostStub, DEVICE_HOST)
    try:
        request = device_host_pb2.GetDeviceRequest(vm_id=vm_id, instance_id=device.instance_id)
        return (await peer.stub.GetDevice(request)).guest_capabilities.SerializeToString()
    finally:
        await peer.close()


@pytest.mark.parametrize("kind", [vm_owner_pb2.VM_KIND_WSL2, vm_owner_pb2.VM_KIND_WSLC])
async def test_its_capabilities_reach_the_device_host_byte_for_byte(
    house: House, kind: vm_owner_pb2.VmKind.ValueType
) -> None:
    raw = newer()
    async with newer_machine(house.run_dir, raw) as address:
        create = vm_owner_pb2.CreateVmRequest(kind=kind)
        create.external.address = address
        vm_id = (await house.stub.CreateVm(create, timeout=60)).vm.vm_id
        if kind == vm_owner_pb2.VM_KIND_WSLC:
            read = await house.stub.GetGuestCapabilities(
                vm_owner_pb2.GetGuestCapabilitiesRequest(vm_id=vm_id)
            )
            assert read.capabilities.SerializeToString() == raw
            applied = await house.stub.ApplyGuestCapabilities(
                vm_owner_pb2.ApplyGuestCapabilitiesRequest(
                    vm_id=vm_id, capabilities=read.capabilities
                )
            )
            assert applied.capabilities.SerializeToString() == raw
        await house.add_share(vm_id, "data")
        vm = await house.get(vm_id)
        assert vm.capabilities.SerializeToString() == raw
        assert vm.swiotlb_option in vm.devices[0].options
        assert await on_device_host(house, vm.devices[0], vm_id) == raw
        await house.terminate(vm_id)

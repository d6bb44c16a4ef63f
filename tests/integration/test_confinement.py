"""What the device host's process can reach, seen from outside it; and what hostile peers can do.

The device host, the owner and the guests are processes of their own. The kernel's /proc shows what
is mapped; nothing here asks the device host itself.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.devicehost.v1.device_host_pb2 import (
    CreateDeviceRequest,
    ListDevicesRequest,
    RemoveDeviceRequest,
)
from porthole.devicehost.v1.device_host_pb2_grpc import DeviceHostStub
from porthole.handshake.v1 import device_pb2
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities, SwiotlbPool
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.rpc.channel import connect
from services.session import apply_guest_capabilities

if TYPE_CHECKING:
    from tests.support.house import House

DEVICE_HOST = "porthole.devicehost.v1.DeviceHost"
WSL2 = vm_owner_pb2.VM_KIND_WSL2
WSLC = vm_owner_pb2.VM_KIND_WSLC
RAM_BYTES = 2 << 30


def guest_memory_mapped(pid: int) -> list[tuple[int, int]]:
    """File offset and length of every stretch of a guest's memfd that a process has mapped."""
    line = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +/memfd:guest-ram")
    found = line.finditer(Path(f"/proc/{pid}/maps").read_text())
    return [(int(m[3], 16), int(m[2], 16) - int(m[1], 16)) for m in found]


def guest_memory_descriptors(pid: int) -> int:
    """How many descriptors of a guest's memfd a process holds."""
    links = (str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return sum("memfd:guest-ram" in link for link in links)


async def test_the_device_host_maps_the_pool_and_ring_pages_and_keeps_no_descriptor(
    house: House,
) -> None:
    vm = await house.create(WSL2, ram_bytes=RAM_BYTES)
    await house.add_share(vm.vm_id, "one")
    await house.add_share(vm.vm_id, "two", "ro")
    assert await house.guest_reads(vm, "one")
    assert await house.guest_reads(vm, "two")
    pool = vm.latched_pool
    mapped = guest_memory_mapped(house.pid_of("device host"))
    apertures = [size for offset, size in mapped if offset == pool.base]
    assert apertures == [pool.size_bytes] * 2
    # WSL's rings are ordinary RAM: only their own pages are mapped beside the pool.
    rings = [size for offset, size in mapped if offset != pool.base]
    assert rings
    assert all(
        offset + size <= pool.base or offset >= pool.base + pool.size_bytes
        for offset, size in mapped
        if offset != pool.base
    )
    assert sum(rings) < 1 << 20
    assert guest_memory_descriptors(house.pid_of("device host")) == 0


async def test_nothing_stays_mapped_behind_a_device_that_is_removed(house: House) -> None:
    vm = await house.create(WSL2)
    share = await house.add_share(vm.vm_id, "one")
    pid = house.pid_of("device host")
    assert guest_memory_mapped(pid)
    await house.stub.RemoveShare(
        vm_owner_pb2.RemoveShareRequest(vm_id=vm.vm_id, share_id=share.share_id)
    )
    assert guest_memory_mapped(pid) == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        (1).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\xff\xff\xff\xff",
    ],
    ids=["zeros", "http", "random", "a length of 4 GiB"],
)
async def test_garbage_on_a_devices_socket_harms_neither_it_nor_its_neighbour(
    house: House, garbage: bytes
) -> None:
    vm = await house.create(WSL2)
    await house.add_share(vm.vm_id, "neighbour")
    peer = await connect(f"unix:{house.run_dir}/devicehost.sock", DeviceHostStub, DEVICE_HOST)
    try:
        vm_id = str(uuid.uuid4())
        request = CreateDeviceRequest(
            vm_id=vm_id, instance_id="lonely", tag="lonely", options=f"lonely;vm_id={vm_id}"
        )
        request.fs.shared_dir = str(house.shared)
        path = (await peer.stub.CreateDevice(request)).socket_path
        for _ in range(3):  # it listens again each time
            with socket.socket(socket.AF_UNIX) as rude:
                rude.settimeout(10)
                rude.connect(path)
                rude.sendall(garbage)
                rude.shutdown(socket.SHUT_WR)
                assert _is_closed(rude)
        listed = (await peer.stub.ListDevices(ListDevicesRequest(vm_id=vm_id))).devices
        assert [device.counters.requests for device in listed] == [0]
        await peer.stub.RemoveDevice(RemoveDeviceRequest(vm_id=vm_id, instance_id="lonely"))
    finally:
        await peer.close()
    assert await house.guest_reads(vm, "neighbour")
    assert {device.state for device in (await house.get(vm.vm_id)).devices} == {
        device_pb2.DEVICE_STATE_ATTACHED
    }


def _is_closed(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def pool_of(base: int, size_bytes: int) -> GuestCapabilities:
    return GuestCapabilities(swiotlb_pool=SwiotlbPool(base=base, size_bytes=size_bytes))


@pytest.mark.parametrize(
    ("capabilities", "reason"),
    [
        (pool_of(0x3C000000, 0), "SWIOTLB_HALF_POOL"),
        (pool_of(0, 64 << 20), "SWIOTLB_HALF_POOL"),
        (pool_of(0x3C000001, 64 << 20), "SWIOTLB_BASE_UNALIGNED"),
        (pool_of(0x3C000000, 64 << 20 | 1), "SWIOTLB_SIZE_UNALIGNED"),
        (pool_of((1 << 64) - 4096, 8192), "SWIOTLB_OVERFLOW"),
        (pool_of(4 << 30, 64 << 20), "SWIOTLB_ABOVE_4G"),
        (pool_of(RAM_BYTES - 4096, 8192), "SWIOTLB_OUTSIDE_RAM"),
    ],
)
async def test_a_bad_pool_is_refused_by_name_and_the_good_one_may_follow(
    house: House, capabilities: GuestCapabilities, reason: str
) -> None:
    vm = await house.create(WSLC, ram_bytes=RAM_BYTES)
    request = vm_owner_pb2.ApplyGuestCapabilitiesRequest(vm_id=vm.vm_id, capabilities=capabilities)
    with pytest.raises(InvalidArgumentError) as refused:
        await house.stub.ApplyGuestCapabilities(request)
    assert refused.value.reason == reason
    assert not (await house.get(vm.vm_id)).HasField("latched_pool")
    applied = await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
    assert applied.swiotlb_option.startswith("swiotlb=0x")
    request.capabilities.CopyFrom(pool_of(0x1000, 0x1000))
    with pytest.raises(FailedPreconditionError) as conflict:
        await house.stub.ApplyGuestCapabilities(request)
    assert conflict.value.reason == "SWIOTLB_ALREADY_LATCHED"
    assert (await house.get(vm.vm_id)).swiotlb_option == applied.swiotlb_option

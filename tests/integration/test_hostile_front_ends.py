"""Front-ends of one VM that block whatever they can: no other VM waits, and the process ends."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import struct
import sys
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.devicehost.v1 import device_host_pb2 as pb
from porthole.devicehost.v1 import device_host_pb2_grpc
from porthole.handshake.v1 import device_pb2

from services.devicehost import fastpath
from services.devicehost.servicer import SERVICE
from services.rpc.channel import connect
from services.wire.vhost_user import U64, Request, message
from tests.support.command import PORTHOLE
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRam, GuestRing
from tests.support.huge_pages import HUGE, huge_pages
from tests.unit.devicehost.host.conftest import MIB, OTHER_VM, POOL, TOKEN, VM
from tests.unit.devicehost.vhost_user.conftest import eventually
from tests.unit.devicehost.virtio.conftest import full_and_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from porthole.devicehost.v1.device_host_pb2_grpc import DeviceHostAsyncStub

QUICK_S = 3.0
"""More than any call takes here, and less than the first deadline of the device host."""

NATIVE = pytest.param(
    "1", marks=pytest.mark.skipif(fastpath.library is None, reason="not built"), id="native"
)
PYTHON = pytest.param("0", id="Python")
QUEUE = 1
"""A request queue of virtio-fs."""

DATA = POOL.base + 2 * MIB
IN_HEADER = struct.Struct("<IIQQIIIHH")
INIT, GETATTR = 26, 3


@asynccontextmanager
async def device_host(
    run_dir: Path, native: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, DeviceHostAsyncStub]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.devicehost", "--run-dir", str(run_dir)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, fastpath.SWITCH: native, "PYTHONWARNINGS": "error"},
    )
    assert process.stdout is not None
    assert b"ready" in await asyncio.wait_for(process.stdout.readline(), 60)
    peer = await connect(
        f"unix:{run_dir}/devicehost.sock", device_host_pb2_grpc.DeviceHostStub, SERVICE
    )
    try:
        yield process, peer.stub
    finally:
        await peer.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def create(stub: DeviceHostAsyncStub, vm_id: str, instance_id: str, shared: Path) -> Path:
    created = await stub.CreateDevice(
        pb.CreateDeviceRequest(
            vm_id=vm_id,
            instance_id=instance_id,
            tag="share",
            options=f"share;{TOKEN};vm_id={vm_id}",
            fs=pb.FsBackend(shared_dir=str(shared)),
        ),
        timeout=QUICK_S,
    )
    return Path(created.socket_path)


class HostileFrontEnd:
    """A front-end of a virtio-fs device."""

    def __init__(self, stack: ExitStack, path: Path, ram: GuestRam | None = None) -> None:
        self.ram = ram or GuestRam(32 * MIB)
        stack.callback(self.ram.close)
        self.front = stack.enter_context(RawFrontEnd(path))
        self.events = stack.enter_context(RingEvents())
        self._stack = stack

    def begin(self) -> None:
        """Have the device serve a ring, and answer INIT."""
        self.front.negotiate()
        assert self.front.attach(self.ram) == 0
        self.ring = GuestRing(self.ram, POOL.base, 16)
        self.front.start(QUEUE, self.ring, self.events)
        with suppress(BlockingIOError):  # of SET_VRING_CALL
            os.preadv(self.events.call, [bytearray(8)], -1, os.RWF_NOWAIT)
        self.ask(INIT, 0, struct.pack("<IIII", 7, 36, 0, 0))
        ready, _, _ = select.select([self.events.call], [], [], 10)
        assert ready, "no notification of INIT came; it must not be the one that blocks"

    def ask(self, opcode: int, node: int, body: bytes) -> None:
        request = IN_HEADER.pack(
            IN_HEADER.size + len(body), opcode, 1, node, os.getuid(), os.getgid(), 0, 0, 0
        )
        before = self.ring.used_idx
        self.ram.write(DATA, request + body)
        self.ring.chain(0, readable=[(DATA, len(request + body))], writable=[(DATA + 4096, 4096)])
        self.ring.set_used_event(before)
        self.ring.offer(0)
        os.eventfd_write(self.events.kick, 1)
        assert eventually(lambda: self.ring.used_idx != before)

    def block_the_worker(self) -> None:
        """The native loop serves GETATTR, where it serves; it notifies, and waits."""
        self.begin()
        self._stack.enter_context(full_and_blocking(self.events.call))
        self.ask(GETATTR, 1, bytes(16))

    def block_the_report_of_an_error(self) -> None:
        self.begin()
        self._stack.enter_context(full_and_blocking(self.events.err))
        self._stack.enter_context(full_and_blocking(self.events.call))
        self.ring.describe(0, DATA, 8, flags=1, following=0)
        self.ring.offer(0)
        os.eventfd_write(self.events.kick, 1)

    def block_the_reader_of_messages(self) -> None:
        self.begin()
        others = self._stack.enter_context(RingEvents())
        self._stack.enter_context(full_and_blocking(others.call))
        self.front.send(Request.SET_VRING_CALL, U64.pack(QUEUE), [others.call])

    def send_half_a_message(self) -> None:
        self.begin()
        self.front.send_raw(message(Request.GET_FEATURES, b"")[:5])


DEEDS = (
    HostileFrontEnd.block_the_worker,
    HostileFrontEnd.block_the_worker,
    HostileFrontEnd.block_the_report_of_an_error,
    HostileFrontEnd.block_the_reader_of_messages,
    HostileFrontEnd.block_the_reader_of_messages,
    HostileFrontEnd.send_half_a_message,
)


@asynccontextmanager
async def six_hostile_devices(stub: DeviceHostAsyncStub, shared: Path) -> AsyncIterator[list[str]]:
    names = [f"hostile{number}" for number in range(len(DEEDS))]
    paths = [await create(stub, VM, name, shared) for name in names]
    with ExitStack() as stack:
        for path, deed in zip(paths, DEEDS, strict=True):
            await asyncio.to_thread(deed, HostileFrontEnd(stack, path))
        yield names


@pytest.mark.parametrize("native", [NATIVE, PYTHON])
async def test_another_vm_waits_for_nothing(run_dir: Path, tmp_path: Path, native: str) -> None:
    async with (
        device_host(run_dir, native) as (_, stub),
        six_hostile_devices(stub, tmp_path) as names,
    ):
        removals = [
            asyncio.create_task(_remove(stub, VM, name)) for name in names for _ in range(2)
        ]
        for turn in range(3):
            name = f"innocent{turn}"
            await create(stub, OTHER_VM, name, tmp_path)
            if turn < 2:
                await _remove(stub, OTHER_VM, name)
            else:
                await stub.ForgetVm(pb.ForgetVmRequest(vm_id=OTHER_VM), timeout=QUICK_S)
        outcomes = await asyncio.gather(*removals, return_exceptions=True)
        refused = [str(outcome) for outcome in outcomes if outcome is not None]
        # Each was asked to be removed twice; one of the two finds nothing.
        assert len(refused) == len(names)
        assert all("has no device" in text for text in refused)
        assert (await stub.ListDevices(pb.ListDevicesRequest(), timeout=QUICK_S)).devices == []


@pytest.mark.parametrize("native", [NATIVE, PYTHON])
async def test_the_vm_itself_is_forgotten(run_dir: Path, tmp_path: Path, native: str) -> None:
    async with (
        device_host(run_dir, native) as (_, stub),
        six_hostile_devices(stub, tmp_path),
    ):
        await stub.ForgetVm(pb.ForgetVmRequest(vm_id=VM), timeout=2 * QUICK_S)
        assert (await stub.ListDevices(pb.ListDevicesRequest(), timeout=QUICK_S)).devices == []


@pytest.mark.parametrize("native", [NATIVE, PYTHON])
async def test_sigterm_ends_the_process(run_dir: Path, tmp_path: Path, native: str) -> None:
    async with (
        device_host(run_dir, native) as (process, stub),
        six_hostile_devices(stub, tmp_path),
    ):
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert time.monotonic() - begun < 3 * QUICK_S


@pytest.mark.parametrize("native", [NATIVE, PYTHON])
async def test_sigterm_ends_a_device_alone(run_dir: Path, tmp_path: Path, native: str) -> None:
    path = run_dir / "alone.sock"
    process = await asyncio.create_subprocess_exec(
        *(*PORTHOLE, "device", "fs"),
        *("--socket-path", str(path), "--shared-dir", str(tmp_path)),
        *("--swiotlb", TOKEN.removeprefix("swiotlb=")),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, fastpath.SWITCH: native},
    )
    assert process.stdout is not None
    try:
        assert b"ready" in await asyncio.wait_for(process.stdout.readline(), 60)
        with ExitStack() as stack:
            hostile = HostileFrontEnd(stack, path)
            await asyncio.to_thread(hostile.block_the_worker)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), QUICK_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.skipif(fastpath.library is None, reason="the native fast path was not built")
async def test_a_hole_in_huge_pages_ends_one_device_alone(run_dir: Path, tmp_path: Path) -> None:
    """Natively: the loop touches the ring, whose page is gone while no other is free."""
    with huge_pages(6) as pages, ExitStack() as stack:
        async with device_host(run_dir, "1") as (process, stub):
            path = await create(stub, VM, "hostile", tmp_path)
            innocent = HostileFrontEnd(stack, await create(stub, OTHER_VM, "innocent", tmp_path))
            await asyncio.to_thread(innocent.begin)
            hostile = HostileFrontEnd(stack, path, GuestRam(6 * HUGE, huge_pages=True))
            await asyncio.to_thread(hostile.begin)
            hostile.ram.write(0, bytes(6 * HUGE))
            pages.punch_hole(hostile.ram.fd, POOL.base, left=5)
            os.eventfd_write(hostile.events.kick, 1)
            while True:
                device = (
                    await stub.GetDevice(pb.GetDeviceRequest(vm_id=VM, instance_id="hostile"))
                ).device
                if device.state == device_pb2.DEVICE_STATE_NEEDS_RESET:
                    break
                await asyncio.sleep(0.01)
            await asyncio.to_thread(innocent.ask, GETATTR, 1, bytes(16))
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_huge_pages_are_refused_without_the_native_library(
    run_dir: Path, tmp_path: Path
) -> None:
    with huge_pages(6), ExitStack() as stack:
        async with device_host(run_dir, "0") as (_, stub):
            path = await create(stub, VM, "d", tmp_path)
            ram = GuestRam(6 * HUGE, huge_pages=True)
            stack.callback(ram.close)
            front = stack.enter_context(RawFrontEnd(path))
            await asyncio.to_thread(front.negotiate)
            assert await asyncio.to_thread(front.attach, ram) == 1


async def _remove(stub: DeviceHostAsyncStub, vm_id: str, instance_id: str) -> None:
    await stub.RemoveDevice(
        pb.RemoveDeviceRequest(vm_id=vm_id, instance_id=instance_id), timeout=2 * QUICK_S
    )

"""Device host and VM owner as processes, and a client that makes VMs and works in their guests."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.cli.launcher import Services
from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc import tracing
from services.rpc.channel import connect
from services.rpc.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AsyncExitStack

OWNER = "porthole.vmowner.v1.VmOwner"
MACHINE = "porthole.machine.v1.Machine"


def children(pid: int) -> dict[int, str]:
    """Return the command lines of a process's children."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found[int(path.name)] = path.joinpath("cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


class House:
    """The services, and a client of the owner.

    Args:
        run_dir: The run directory.
        settings: Variables of the services' environment, besides those for every test.

    Attributes:
        shared: A directory with one file of 300 KiB.
    """

    def __init__(self, run_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self.run_dir = run_dir
        self.trace_file = run_dir / "trace.jsonl"
        self.shared = run_dir / "shared"
        self.content = os.urandom(300 << 10)
        self.log: list[str] = []
        self.services = Services(
            run_dir,
            {
                "PORTHOLE_TRACE_FILE": str(self.trace_file),
                "PORTHOLE_PEER_WAIT_S": "2",
                "PORTHOLE_LOG_LEVEL": "warning",
                **(settings or {}),
            },
            lambda name, line: self.log.append(f"{name}: {line}"),
        )
        self.stub: vm_owner_pb2_grpc.VmOwnerAsyncStub

    async def start(self, stack: AsyncExitStack) -> None:
        # A WSLC session of a test runs in this process and traces into the same file.
        tracing.setup("session", ServiceSettings(trace_file=self.trace_file))
        stack.callback(tracing.shutdown)
        self.shared.mkdir()
        (self.shared / "file").write_bytes(self.content)
        await stack.enter_async_context(self.services)
        peer = await connect(self.services.owner_address, vm_owner_pb2_grpc.VmOwnerStub, OWNER)
        stack.push_async_callback(peer.close)
        self.stub = peer.stub

    def pid_of(self, name: str) -> int:
        [running] = [item for item in self.services.running if item.program.name == name]
        return running.process.pid

    def guest_processes(self) -> dict[int, str]:
        """Return the command lines of the owner's children, but for its sweeper."""
        found = children(self.pid_of("VM owner"))
        return {pid: line for pid, line in found.items() if "services.vm_owner.sweep" not in line}

    async def until_no_guests(self) -> None:
        """Wait for the owner's children: they end by themselves after TerminateVm was answered."""
        async with asyncio.timeout(20):
            while self.guest_processes():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def create(
        self,
        kind: vm_owner_pb2.VmKind.ValueType,
        wslconfig: str = "",
        *,
        ram_bytes: int = 0,
        machine: vm_owner_pb2.EmbeddedMachine | None = None,
        fixed: bool = False,
    ) -> vm_owner_pb2.Vm:
        request = vm_owner_pb2.CreateVmRequest(
            kind=kind, wslconfig=wslconfig, ram_bytes=ram_bytes, embedded=machine
        )
        if fixed:
            request.shares.add(host_path=str(self.shared), tag="fixed", options="ro")
        return (await self.stub.CreateVm(request, timeout=60)).vm

    async def get(self, vm_id: str) -> vm_owner_pb2.Vm:
        return (await self.stub.GetVm(vm_owner_pb2.GetVmRequest(vm_id=vm_id))).vm

    async def add_share(
        self, vm_id: str, tag: str, options: str = "", *, aggregate: bool = False
    ) -> vm_owner_pb2.Share:
        spec = vm_owner_pb2.ShareSpec(
            host_path=str(self.shared), tag=tag, options=options, aggregate=aggregate
        )
        request = vm_owner_pb2.AddShareRequest(vm_id=vm_id, share=spec)
        return (await self.stub.AddShare(request)).share

    async def guest_reads(self, vm: vm_owner_pb2.Vm, tag: str, path: str = "") -> bool:
        """Return whether the guest reads the shared file with the content that the host has."""
        peer = await connect(vm.machine_address, GuestStub, MACHINE)
        try:
            request = machine_pb2.HashTreeRequest(tag=tag, path=path)
            digests = {
                file.path: file.sha256
                async for answer in peer.stub.workload.HashTree(request)
                for file in answer.files
            }
        finally:
            await peer.close()
        return digests == {b"file": hashlib.sha256(self.content).digest()}

    async def guest_pings(self, vm: vm_owner_pb2.Vm, address: str) -> int:
        """Send three echo requests from the guest; return the number of replies."""
        peer = await connect(vm.machine_address, GuestStub, MACHINE)
        try:
            request = machine_pb2.PingRequest(address=address, count=3, timeout=Duration(seconds=5))
            answer = await peer.stub.workload.Ping(request, timeout=20)
            return int(answer.received)
        finally:
            await peer.close()

    @asynccontextmanager
    async def workload(self, vm: vm_owner_pb2.Vm) -> AsyncIterator[machine_pb2_grpc.WorkloadStub]:
        """Connect to what works in the guest."""
        peer = await connect(vm.machine_address, GuestStub, MACHINE)
        try:
            yield peer.stub.workload
        finally:
            await peer.close()

    async def terminate(self, vm_id: str) -> None:
        await self.stub.TerminateVm(vm_owner_pb2.TerminateVmRequest(vm_id=vm_id), timeout=30)

    def broken_rules(self) -> list[str]:
        recorded = parse_otlp_lines(self.trace_file.read_text(), self.trace_file.name)
        verdicts = verify(recorded)
        assert verdicts
        return [f"{v.rule}: {v.detail}" for verdict in verdicts for v in verdict.violations]


class GuestStub:
    def __init__(self, channel: object) -> None:
        self.GetVersion = machine_pb2_grpc.MachineStub(channel).GetVersion  # type: ignore[call-overload]
        self.workload = machine_pb2_grpc.WorkloadStub(channel)  # type: ignore[call-overload]

"""Linux guests in QEMU, of an owner and a device host that run as processes.

What a test asks for in the guest goes over GuestControl, at the address of its init.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from porthole.guest.v1 import guest_control_pb2, guest_control_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2

from services.rpc.channel import connect
from services.vm_owner.clients import GUEST_CONTROL
from services.vm_owner.machines.qemu.image import INITRAMFS, KERNEL
from tests.support.house import House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

DEADLINE_S = 120.0
"""The longest that a call takes: the guest is emulated, maybe beside other guests."""

RAM_BYTES = 1280 << 20
"""Enough for a pool of 64 MiB by default."""


class LinuxHouse(House):
    """The services, with an owner that boots Linux guests by emulation."""

    def __init__(self, run_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(
            run_dir,
            {
                "PORTHOLE_QEMU_ACCEL": "tcg",
                "PORTHOLE_QEMU_KERNEL": str(KERNEL),
                "PORTHOLE_QEMU_INITRAMFS": str(INITRAMFS),
                "PORTHOLE_BOOT_DEADLINE_S": "100",
                "PORTHOLE_CAPABILITIES_DEADLINE_S": "100",
                **(settings or {}),
            },
        )

    async def boot(
        self,
        kind: vm_owner_pb2.VmKind.ValueType,
        *,
        ram_bytes: int = RAM_BYTES,
        machine: vm_owner_pb2.QemuMachine | None = None,
        wslconfig: str = "",
    ) -> vm_owner_pb2.Vm:
        request = vm_owner_pb2.CreateVmRequest(kind=kind, ram_bytes=ram_bytes, wslconfig=wslconfig)
        request.qemu.CopyFrom(machine or vm_owner_pb2.QemuMachine())
        return (await self.stub.CreateVm(request, timeout=DEADLINE_S)).vm

    async def remove_share(self, vm_id: str, share_id: str) -> None:
        request = vm_owner_pb2.RemoveShareRequest(vm_id=vm_id, share_id=share_id)
        await self.stub.RemoveShare(request, timeout=DEADLINE_S)


@asynccontextmanager
async def control(
    vm: vm_owner_pb2.Vm,
) -> AsyncIterator[guest_control_pb2_grpc.GuestControlAsyncStub]:
    """Connect to the init of a guest."""
    stub = guest_control_pb2_grpc.GuestControlStub
    peer = await connect(vm.guest_init_address, stub, GUEST_CONTROL, default_deadline_s=DEADLINE_S)
    try:
        yield peer.stub
    finally:
        await peer.close()


async def run(
    stub: guest_control_pb2_grpc.GuestControlAsyncStub,
    *words: str,
    environment: Sequence[str] = (),
) -> tuple[int, str]:
    """Run a command in the guest; return its exit code and output."""
    command = guest_control_pb2.Command(
        arguments=[word.encode() for word in words],
        environment=[variable.encode() for variable in environment],
    )
    requests = [guest_control_pb2.RunRequest(command=command)]
    said, code = b"", -1
    async for answer in stub.Run(iter(requests), timeout=DEADLINE_S):
        said += answer.standard_output + answer.standard_error
        if answer.HasField("ended"):
            code = answer.ended.exit_code
    return code, said.decode()

"""A WSLC session: pulls a guest's capabilities by way of the VM owner, and applies them there.

Owns both calls, and an event of its own; guest init and the owner add theirs. It applies the very
protobuf message that the guest sent, so that fields which this version does not know still reach
the owner. The owner judges the capabilities.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities
from services.handshake.pool import Gpa, SwiotlbPool
from services.rpc import tracing
from services.rpc.channel import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from porthole.handshake.v1 import guest_capabilities_pb2

    Capabilities = guest_capabilities_pb2.GuestCapabilities

VM_OWNER: Final = "porthole.vmowner.v1.VmOwner"

APPLY_DEADLINE_S: Final = 60.0
"""Longest that ApplyGuestCapabilities takes: the owner adds the VM's first shares in it."""


class Session:
    """A session with one VM owner. A method raises the PortholeError that a peer answered.

    Attributes:
        owner: Stub of the VM owner, for calls that need no session: shares, devices, networking.
    """

    def __init__(self, owner: vm_owner_pb2_grpc.VmOwnerAsyncStub) -> None:
        self.owner = owner

    async def read_guest_capabilities(self, vm_id: str) -> Capabilities:
        """Pull the guest's capabilities (WSLC_GET_GUEST_CAPABILITIES); the owner asks guest init.

        Args:
            vm_id: A WSLC VM that has booted.

        Returns:
            The message that the guest sent, with its unknown fields.

        Raises:
            NotFoundError: There is no such VM.
            FailedPreconditionError: WRONG_VM_KIND, or the VM has not booted, or has ended.
            UnavailableError: GUEST_INIT_UNREACHABLE, or the owner cannot be reached.
            DeadlineExceededError: GUEST_INIT_SILENT.
        """
        return await self._read(await self._vm(vm_id))

    async def apply_guest_capabilities(
        self, vm_id: str
    ) -> vm_owner_pb2.ApplyGuestCapabilitiesResponse:
        """Pull the guest's capabilities and forward them to the VM owner.

        It may be repeated; the owner then answers `already_applied`.

        Raises:
            NotFoundError: There is no such VM.
            InvalidArgumentError: The owner refused the pool; the VM runs without one.
            FailedPreconditionError: Other capabilities were latched before; or a reason of
                read_guest_capabilities.
            UnavailableError: GUEST_INIT_UNREACHABLE, or the owner cannot be reached.
        """
        vm = await self._vm(vm_id)
        with tracing.operation("SessionApply", vm_traceparent=vm.traceparent):
            request = vm_owner_pb2.ApplyGuestCapabilitiesRequest(
                vm_id=vm_id, capabilities=await self._read(vm)
            )
            return await self.owner.ApplyGuestCapabilities(request, timeout=APPLY_DEADLINE_S)

    async def _vm(self, vm_id: str) -> vm_owner_pb2.Vm:
        return (await self.owner.GetVm(vm_owner_pb2.GetVmRequest(vm_id=vm_id))).vm

    async def _read(self, vm: vm_owner_pb2.Vm) -> Capabilities:
        with tracing.operation("SessionRead", vm_traceparent=vm.traceparent):
            request = vm_owner_pb2.GetGuestCapabilitiesRequest(vm_id=vm.vm_id)
            answer = await self.owner.GetGuestCapabilities(request)
            tracing.emit(events.wslc_read(vm.vm_id, _as_announced(answer.capabilities)))
            return answer.capabilities


def _as_announced(message: Capabilities) -> GuestCapabilities:
    """Return the capabilities for the trace, with the guest's numbers, valid or not."""
    pool = message.swiotlb_pool
    announced = pool.base or pool.size_bytes
    return GuestCapabilities(
        pool=SwiotlbPool(Gpa(pool.base), pool.size_bytes) if announced else None,
        kernel_release=message.kernel_release,
    )


@asynccontextmanager
async def open_session(owner_address: str, *, wait_s: float = 30.0) -> AsyncIterator[Session]:
    """Connect to a VM owner and hold a session.

    Args:
        owner_address: "unix:/path" or "host:port".
        wait_s: Longest wait for the owner to come up.

    Raises:
        UnavailableError: The owner did not come up.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    peer = await connect(owner_address, vm_owner_pb2_grpc.VmOwnerStub, VM_OWNER, wait_s=wait_s)
    try:
        yield Session(peer.stub)
    finally:
        await peer.close()


async def apply_guest_capabilities(
    owner_address: str, vm_id: str, *, wait_s: float = 30.0
) -> vm_owner_pb2.ApplyGuestCapabilitiesResponse:
    """Pull the capabilities of one VM from its guest init and forward them to its owner.

    Args:
        owner_address: "unix:/path" or "host:port".
        vm_id: A WSLC VM that has booted.
        wait_s: See `open_session`.

    Raises:
        PortholeError: See Session.apply_guest_capabilities.
    """
    async with open_session(owner_address, wait_s=wait_s) as session:
        return await session.apply_guest_capabilities(vm_id)

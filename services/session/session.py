"""A WSLC session: pulls a guest's capabilities and forwards them to the VM owner.

Owns the pull and the forward. What the guest sent is forwarded as the very protobuf message, so
that fields which this version does not know arrive at an owner that does. Must not judge
capabilities: the owner does.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities
from services.handshake.errors import FailedPreconditionError
from services.handshake.pool import Gpa, SwiotlbPool
from services.rpc import tracing
from services.rpc.channel import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from porthole.handshake.v1 import guest_capabilities_pb2

    Capabilities = guest_capabilities_pb2.GuestCapabilities

VM_OWNER: Final = "porthole.vmowner.v1.VmOwner"
GUEST_INIT: Final = "porthole.guest.v1.GuestInit"

APPLY_DEADLINE_S: Final = 60.0
"""How long ApplyGuestCapabilities may take: the owner adds the VM's first shares meanwhile."""


class Session:
    """What a session does to its VMs. Every method raises the PortholeError that a peer answered.

    Attributes:
        owner: Stub of the VM owner, for everything that needs no session: shares, devices, network.
    """

    def __init__(self, owner: vm_owner_pb2_grpc.VmOwnerAsyncStub, wait_s: float = 30.0) -> None:
        self.owner = owner
        self._wait_s = wait_s

    async def read_guest_capabilities(self, vm_id: str) -> Capabilities:
        """Pull from guest init what the guest's kernel published (WSLC_GET_GUEST_CAPABILITIES).

        Args:
            vm_id: A VM that has booted.

        Returns:
            What the guest sent, unknown fields included.

        Raises:
            NotFoundError: There is no such VM.
            FailedPreconditionError: GUEST_INIT_ABSENT: the VM has not booted, or has ended.
            UnavailableError: Its guest init cannot be reached.
        """
        return await self._read(await self._vm(vm_id))

    async def apply_guest_capabilities(
        self, vm_id: str
    ) -> vm_owner_pb2.ApplyGuestCapabilitiesResponse:
        """Pull what the guest's kernel published and forward it to the VM owner.

        May be repeated: the owner says `already_applied` then.

        Raises:
            NotFoundError: There is no such VM.
            InvalidArgumentError: The owner refused the pool; the VM runs without one.
            FailedPreconditionError: GUEST_INIT_ABSENT, or another pool was latched before.
            UnavailableError: The guest's init or the owner cannot be reached.
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
        if not vm.guest_init_address:
            raise FailedPreconditionError(
                "GUEST_INIT_ABSENT",
                f"VM {vm.vm_id} has no guest init to ask; it has not booted, or has ended",
                vm_id=vm.vm_id,
            )
        with tracing.operation("SessionRead", vm_traceparent=vm.traceparent):
            peer = await connect(
                vm.guest_init_address,
                guest_init_pb2_grpc.GuestInitStub,
                GUEST_INIT,
                wait_s=self._wait_s,
            )
            try:
                answer = await peer.stub.GetGuestCapabilities(
                    guest_init_pb2.GetGuestCapabilitiesRequest()
                )
            finally:
                await peer.close()
            tracing.emit(events.wslc_read(vm.vm_id, _as_announced(answer.capabilities)))
            return answer.capabilities


def _as_announced(message: Capabilities) -> GuestCapabilities:
    """The very numbers of the guest for the trace, valid or not: the owner is the judge."""
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
        wait_s: How long to wait for the owner, and for a guest's init, to come up.

    Raises:
        UnavailableError: The owner did not come up.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    peer = await connect(owner_address, vm_owner_pb2_grpc.VmOwnerStub, VM_OWNER, wait_s=wait_s)
    try:
        yield Session(peer.stub, wait_s)
    finally:
        await peer.close()


async def apply_guest_capabilities(
    owner_address: str, vm_id: str, *, wait_s: float = 30.0
) -> vm_owner_pb2.ApplyGuestCapabilitiesResponse:
    """Do all that a session owes one VM: pull from its guest init, forward to its owner.

    Args:
        owner_address: "unix:/path" or "host:port".
        vm_id: A VM that has booted.
        wait_s: As in `open_session`.

    Raises:
        PortholeError: As Session.apply_guest_capabilities does.
    """
    async with open_session(owner_address, wait_s=wait_s) as session:
        return await session.apply_guest_capabilities(vm_id)

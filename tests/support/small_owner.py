"""The methods of VmOwner that a session calls, over real gRPC, with a record of requests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.handshake.errors import (
    FailedPreconditionError,
    NotFoundError,
    PortholeError,
    UnavailableError,
)
from services.rpc import tracing
from services.rpc.server import Servicer, start_server
from services.rpc.version import service_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

VM_OWNER = "porthole.vmowner.v1.VmOwner"
READ = "/porthole.guest.v1.GuestInit/GetGuestCapabilities"


class SmallOwner:
    """An owner of one VM. It asks the guest init of the VM's address, if there is one.

    Attributes:
        vm: The answer to GetVm; None when there is no VM.
        applied: The bytes of every ApplyGuestCapabilities, as they arrived.
        trace_ids: The traces that those calls belonged to.
        refusal: The error to raise instead of applying; None: it applies.
    """

    def __init__(self, vm: pb.Vm | None) -> None:
        self.vm = vm
        self.applied: list[bytes] = []
        self.trace_ids: list[str] = []
        self.refusal: PortholeError | None = None

    async def _get_version(self, _: pb.GetVersionRequest, __: Any) -> pb.GetVersionResponse:
        return pb.GetVersionResponse(version=service_version(VM_OWNER))

    async def _get_vm(self, request: pb.GetVmRequest, _: Any) -> pb.GetVmResponse:
        if self.vm is None or self.vm.vm_id != request.vm_id:
            raise NotFoundError("VM_UNKNOWN", f"there is no VM {request.vm_id}")
        return pb.GetVmResponse(vm=self.vm)

    async def _read(self, _: bytes, __: Any) -> bytes:
        if self.vm is None or not self.vm.guest_init_address:
            raise FailedPreconditionError("VM_NOT_BOOTED", "its guest is still starting")
        # The two services have answers of the same shape: one GuestCapabilities, field 1.
        async with grpc.aio.insecure_channel(self.vm.guest_init_address) as channel:
            call: Any = channel.unary_unary(READ)
            try:
                answer: bytes = await call(b"", timeout=10)
            except grpc.aio.AioRpcError as failure:
                raise UnavailableError("GUEST_INIT_UNREACHABLE", str(failure.details())) from None
        return answer

    async def _apply(self, raw: bytes, _: Any) -> pb.ApplyGuestCapabilitiesResponse:
        if self.refusal is not None:
            raise self.refusal
        self.trace_ids.append((tracing.current_traceparent() or "-").split("-")[1])
        self.applied.append(raw)
        return pb.ApplyGuestCapabilitiesResponse(
            already_applied=len(self.applied) > 1, swiotlb_option="swiotlb=0x3c000000,67108864"
        )

    def servicer(self) -> Servicer:
        """Make it a service; the calls with capabilities get bytes."""
        unary = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetVersion": unary(
                self._get_version,
                pb.GetVersionRequest.FromString,
                pb.GetVersionResponse.SerializeToString,
            ),
            "GetVm": unary(
                self._get_vm, pb.GetVmRequest.FromString, pb.GetVmResponse.SerializeToString
            ),
            "GetGuestCapabilities": unary(self._read),
            "ApplyGuestCapabilities": unary(
                self._apply, None, pb.ApplyGuestCapabilitiesResponse.SerializeToString
            ),
        }
        service = grpc.method_handlers_generic_handler(VM_OWNER, handlers)

        def add(_: object, server: Any) -> None:
            server.add_generic_rpc_handlers((service,))

        return Servicer(add, self, VM_OWNER)


@asynccontextmanager
async def serving(owner: SmallOwner, run_dir: Path) -> AsyncIterator[str]:
    """Serve it on <run_dir>/owner.sock; return the address."""
    address = f"unix:{run_dir}/owner.sock"
    handle = await start_server([address], [owner.servicer()])
    yield address
    await handle.stop(0)

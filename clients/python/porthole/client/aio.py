"""The client of a VM owner for asyncio.

Owns one channel. Its synchronous twin is in sync.py; which call may be repeated is in methods.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import grpc

from porthole.client import methods
from porthole.client.addresses import target
from porthole.client.attempts import Attempts
from porthole.client.channels import OPTIONS, check_version
from porthole.client.errors import error_from
from porthole.client.watching import Watch
from porthole.vmowner.v1 import vm_owner_pb2 as pb
from porthole.vmowner.v1 import vm_owner_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from google.protobuf.message import Message

    from porthole.client.methods import Method

Request = TypeVar("Request", bound="Message")
Response = TypeVar("Response", bound="Message")


class AsyncVmOwner:
    """A client of one VM owner; use it in an `async with`, which waits for the owner.

    A method takes the request message of the method of that name in vm_owner.proto, and returns its
    response. `timeout_s` is for the whole call: the attempts after UNAVAILABLE and the pauses
    between them are within it. A failed call raises a PortholeError. Tasks may share a client,
    which is made where an event loop runs.

    Args:
        address: For instance "unix:///run/porthole/owner.sock" or "tcp://127.0.0.1:7777".
        wait_s: Longest wait for an owner that is not up yet.

    Raises:
        InvalidArgumentError: ADDRESS_SYNTAX, or SOCKET_PATH_TOO_LONG.

    Attributes:
        stub: The generated stub, for calls without any of that.
    """

    def __init__(self, address: str, *, wait_s: float = 30.0) -> None:
        self._address = address
        self._wait_s = wait_s
        self._channel = grpc.aio.insecure_channel(target(address), options=OPTIONS)
        self.stub: vm_owner_pb2_grpc.VmOwnerAsyncStub = vm_owner_pb2_grpc.VmOwnerStub(self._channel)

    async def __aenter__(self) -> Self:
        """Wait until the owner answers.

        Raises:
            UnavailableError: PEER_UNAVAILABLE after `wait_s`.
            DeadlineExceededError: PEER_DEADLINE_EXCEEDED; it is there, and does not answer.
            FailedPreconditionError: API_VERSION_MISMATCH.
        """
        try:
            check_version(self._address, await self.get_version(timeout_s=self._wait_s))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel running calls and disconnect."""
        await self._channel.close()

    async def get_version(self, *, timeout_s: float | None = None) -> pb.GetVersionResponse:
        """Return the versions of the owner."""
        return await self._call(
            self.stub.GetVersion, pb.GetVersionRequest(), methods.READ, timeout_s
        )

    async def create_vm(
        self, request: pb.CreateVmRequest, *, timeout_s: float | None = None
    ) -> pb.CreateVmResponse:
        """Boot a VM. A request without a `vm_id` gets one, so that it can be repeated."""
        return await self._call(self.stub.CreateVm, request, methods.CREATE_VM, timeout_s)

    async def get_vm(self, vm_id: str, *, timeout_s: float | None = None) -> pb.Vm:
        """Return the VM with this id, or the only one whose id begins with it."""
        request = pb.GetVmRequest(vm_id=vm_id)
        return (await self._call(self.stub.GetVm, request, methods.READ, timeout_s)).vm

    async def vms(
        self,
        view: pb.VmView.ValueType = pb.VM_VIEW_BASIC,
        *,
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncIterator[pb.Vm]:
        """Return all VMs, page by page; `timeout_s` is for one page."""
        request = pb.ListVmsRequest(view=view, page_size=page_size)
        while True:
            page = await self._call(self.stub.ListVms, request, methods.READ, timeout_s)
            for vm in page.vms:
                yield vm
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch_vm(
        self, vm_id: str, *, after_sequence: int = 0, wait_s: float | None = None
    ) -> AsyncIterator[pb.WatchVmResponse]:
        """Follow a VM until it has ended, also when the stream breaks or the reader is too slow.

        A broken stream is resumed after the last message. When the owner no longer has what came
        after it, a new snapshot follows; its `snapshot_end` is the only one that comes again.

        Args:
            vm_id: Id of the VM.
            after_sequence: Number of the last message that the reader knows; 0: a snapshot.
            wait_s: Longest wait for an owner that has gone away.
        """
        watch = Watch(vm_id, after_sequence)
        attempts = Attempts(methods.WATCH, self._wait_s if wait_s is None else wait_s)
        while True:
            stream = self.stub.WatchVm(watch.begin_stream())
            try:
                async for message in stream:
                    if watch.is_new(message):
                        yield message
            except grpc.aio.AioRpcError as failure:
                if watch.heard:  # the wait begins now, however long the stream lasted
                    attempts.begin_anew()
                await self._pause(attempts, failure)
            else:
                return
            finally:
                stream.cancel()

    async def get_guest_capabilities(
        self, vm_id: str, *, timeout_s: float | None = None
    ) -> pb.GetGuestCapabilitiesResponse:
        """Ask the guest init of a WSLC VM for what its kernel publishes."""
        request = pb.GetGuestCapabilitiesRequest(vm_id=vm_id)
        return await self._call(self.stub.GetGuestCapabilities, request, methods.READ, timeout_s)

    async def apply_guest_capabilities(
        self, request: pb.ApplyGuestCapabilitiesRequest, *, timeout_s: float | None = None
    ) -> pb.ApplyGuestCapabilitiesResponse:
        """Apply the capabilities of a WSLC VM's guest; `play_session` does both steps."""
        return await self._call(
            self.stub.ApplyGuestCapabilities, request, methods.IDEMPOTENT, timeout_s
        )

    async def play_session(
        self, vm_id: str, *, timeout_s: float = 60.0
    ) -> pb.ApplyGuestCapabilitiesResponse:
        """Play the WSLC session for a VM: wait until it has booted, read, and apply.

        The very message of the guest is applied, with fields that this version does not know. It
        may be repeated; the owner then answers `already_applied`.
        """
        attempts = Attempts(methods.READ_BOOTED, timeout_s)
        read = pb.GetGuestCapabilitiesRequest(vm_id=vm_id)
        answer = await self._repeat(self.stub.GetGuestCapabilities, read, attempts)
        apply = pb.ApplyGuestCapabilitiesRequest(vm_id=vm_id, capabilities=answer.capabilities)
        return await self.apply_guest_capabilities(apply, timeout_s=attempts.left_s)

    async def add_share(
        self, request: pb.AddShareRequest, *, timeout_s: float | None = None
    ) -> pb.AddShareResponse:
        """Share a directory. `already_existed` may be of an attempt whose answer was lost."""
        return await self._call(self.stub.AddShare, request, methods.IDEMPOTENT, timeout_s)

    async def remove_share(
        self, request: pb.RemoveShareRequest, *, timeout_s: float | None = None
    ) -> pb.RemoveShareResponse:
        """Remove a share; never repeated."""
        return await self._call(self.stub.RemoveShare, request, methods.ONCE, timeout_s)

    async def add_guest_device(
        self, request: pb.AddGuestDeviceRequest, *, timeout_s: float | None = None
    ) -> pb.AddGuestDeviceResponse:
        """Add a device. A request without an `instance_id` gets one, so that it can be repeated."""
        return await self._call(
            self.stub.AddGuestDevice, request, methods.ADD_GUEST_DEVICE, timeout_s
        )

    async def remove_guest_device(
        self, request: pb.RemoveGuestDeviceRequest, *, timeout_s: float | None = None
    ) -> pb.RemoveGuestDeviceResponse:
        """Remove a device; never repeated."""
        return await self._call(self.stub.RemoveGuestDevice, request, methods.ONCE, timeout_s)

    async def configure_networking(
        self,
        vm_id: str,
        mode: pb.NetworkingMode.ValueType = pb.NETWORKING_MODE_UNSPECIFIED,
        *,
        options: str = "",
        host_loopback: bool = False,
        timeout_s: float | None = None,
    ) -> pb.ConfigureNetworkingResponse:
        """Set the networking of a VM up; never repeated. An answer may have a `warning`."""
        request = pb.ConfigureNetworkingRequest(
            vm_id=vm_id, mode=mode, options=options, host_loopback=host_loopback
        )
        return await self._call(self.stub.ConfigureNetworking, request, methods.ONCE, timeout_s)

    async def map_port(
        self, request: pb.MapPortRequest, *, timeout_s: float | None = None
    ) -> pb.MapPortResponse:
        """Forward a port of the host to the guest; never repeated."""
        return await self._call(self.stub.MapPort, request, methods.ONCE, timeout_s)

    async def unmap_port(
        self, request: pb.UnmapPortRequest, *, timeout_s: float | None = None
    ) -> pb.UnmapPortResponse:
        """End a mapping; never repeated."""
        return await self._call(self.stub.UnmapPort, request, methods.ONCE, timeout_s)

    async def list_ports(
        self, vm_id: str, *, timeout_s: float | None = None
    ) -> pb.ListPortsResponse:
        """Return the mappings of a VM."""
        request = pb.ListPortsRequest(vm_id=vm_id)
        return await self._call(self.stub.ListPorts, request, methods.READ, timeout_s)

    async def set_rate_limit(
        self, request: pb.SetRateLimitRequest, *, timeout_s: float | None = None
    ) -> pb.SetRateLimitResponse:
        """Change how fast the frames of an adapter may go."""
        return await self._call(self.stub.SetRateLimit, request, methods.IDEMPOTENT, timeout_s)

    async def terminate_vm(
        self, vm_id: str, *, timeout_s: float | None = None
    ) -> pb.TerminateVmResponse:
        """Shut a VM down."""
        request = pb.TerminateVmRequest(vm_id=vm_id)
        return await self._call(self.stub.TerminateVm, request, methods.IDEMPOTENT, timeout_s)

    async def _call(
        self,
        stub: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        method: Method,
        timeout_s: float | None,
    ) -> Response:
        return await self._repeat(stub, method.with_id(request), Attempts(method, timeout_s))

    async def _repeat(
        self,
        stub: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        attempts: Attempts,
    ) -> Response:
        while True:
            try:
                return await stub(request, timeout=attempts.left_s)
            except grpc.aio.AioRpcError as failure:
                await self._pause(attempts, failure)

    async def _pause(self, attempts: Attempts, failure: grpc.aio.AioRpcError) -> None:
        error = error_from(failure, self._address)
        pause_s = attempts.pause_after(error)
        if pause_s is None:
            raise error from None
        await asyncio.sleep(pause_s)

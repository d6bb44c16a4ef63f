"""The init channel of one VM: InitChannel, which its guest init reports to.

Owns the server, on a socket of its own in the directory of the VM. A report goes to a callback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc

from services.rpc.server import ServerHandle, Servicer, start_described_server
from services.rpc.version import service_version
from services.vm_owner.convert import report_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from services.vm_owner.reports import Report

INIT_CHANNEL: Final = "porthole.guest.v1.InitChannel"


class InitChannelServicer(guest_init_pb2_grpc.InitChannelServicer):
    """Serves porthole.guest.v1.InitChannel to the guest of one VM.

    Args:
        on_report: Called with a report; returns whether a pool is latched afterwards.
    """

    def __init__(self, on_report: Callable[[Report], Awaitable[bool]]) -> None:
        self._on_report = on_report

    async def GetVersion(  # noqa: N802, D102
        self, request: guest_init_pb2.InitChannelGetVersionRequest, context: object
    ) -> guest_init_pb2.InitChannelGetVersionResponse:
        return guest_init_pb2.InitChannelGetVersionResponse(version=service_version(INIT_CHANNEL))

    async def ReportGuestCapabilities(  # noqa: N802, D102
        self, request: guest_init_pb2.ReportGuestCapabilitiesRequest, context: object
    ) -> guest_init_pb2.ReportGuestCapabilitiesResponse:
        latched = await self._on_report(report_in(request))
        return guest_init_pb2.ReportGuestCapabilitiesResponse(pool_latched=latched)


class InitChannelServer:
    """The server of one VM's init channel, in the VM's directory."""

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self.address = server.addresses[0]

    async def close(self) -> None:
        """Stop listening, and cancel a report that is being answered."""
        await self._server.stop(0)


async def open_init_channel(
    directory: Path, on_report: Callable[[Report], Awaitable[bool]]
) -> InitChannelServer:
    """Serve InitChannel, with health and reflection, on `<directory>/init.sock`.

    Raises:
        FailedPreconditionError: ADDRESS_IN_USE or ADDRESS_UNUSABLE.
    """
    servicer = InitChannelServicer(on_report)
    add = guest_init_pb2_grpc.add_InitChannelServicer_to_server
    address = f"unix:{directory}/init.sock"
    servicers = [Servicer(add, servicer, INIT_CHANNEL)]
    server, _ = await start_described_server([address], servicers)
    return InitChannelServer(server)

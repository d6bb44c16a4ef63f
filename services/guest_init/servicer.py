"""GuestInit over gRPC, which the owner of a WSLC VM calls, or a session itself.

Owns the edge between protobuf and services.guest_init.guest. It adds the event of a read to the
trace, so that nobody who asks has to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc

from services.handshake import events
from services.rpc import tracing
from services.rpc.convert import capabilities_to_proto
from services.rpc.server import Servicer
from services.rpc.version import service_version

if TYPE_CHECKING:
    import grpc

    from services.guest_init.guest import Guest

    Context = grpc.aio.ServicerContext[Any, Any]

GUEST_INIT: Final = "porthole.guest.v1.GuestInit"


class GuestInitServicer(guest_init_pb2_grpc.GuestInitServicer):
    """Serves porthole.guest.v1.GuestInit for one guest.

    Args:
        guest: The guest.
        reports: Whether the guest reports by itself (WSL2); to read it is no step of the handshake
            then.
    """

    def __init__(self, guest: Guest, *, reports: bool) -> None:
        self._guest = guest
        self._reports = reports

    async def GetVersion(  # noqa: N802
        self, request: guest_init_pb2.GuestInitGetVersionRequest, context: Context
    ) -> guest_init_pb2.GuestInitGetVersionResponse:
        """Announce API versions."""
        return guest_init_pb2.GuestInitGetVersionResponse(version=service_version(GUEST_INIT))

    async def GetGuestCapabilities(  # noqa: N802
        self, request: guest_init_pb2.GetGuestCapabilitiesRequest, context: Context
    ) -> guest_init_pb2.GetGuestCapabilitiesResponse:
        """Return what the kernel publishes now."""
        guest = self._guest
        with tracing.operation("GetGuestCapabilities", vm_traceparent=guest.traceparent):
            reading = await guest.kernel.read()
            if guest.vm_id and not self._reports:
                tracing.emit(events.wslc_read(guest.vm_id, reading.capabilities))
            message = capabilities_to_proto(reading.capabilities)
            message.MergeFromString(reading.unknown_fields)
            return guest_init_pb2.GetGuestCapabilitiesResponse(capabilities=message)


def servicer(guest: Guest, *, reports: bool) -> Servicer:
    """Make the service of one guest; see GuestInitServicer."""
    add = guest_init_pb2_grpc.add_GuestInitServicer_to_server
    return Servicer(add, GuestInitServicer(guest, reports=reports), GUEST_INIT)

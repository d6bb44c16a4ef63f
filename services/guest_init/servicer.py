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
    from collections.abc import AsyncIterator

    import grpc

    from services.guest_init.guest import Guest
    from services.guest_init.listeners import Listeners

    Context = grpc.aio.ServicerContext[Any, Any]

GUEST_INIT: Final = "porthole.guest.v1.GuestInit"


class GuestInitServicer(guest_init_pb2_grpc.GuestInitServicer):
    """Serves porthole.guest.v1.GuestInit for one guest.

    Args:
        guest: The guest.
        listeners: The ports on which it listens.
        reports: Whether the guest reports by itself (WSL2); to read it is no step of the handshake
            then.
    """

    def __init__(self, guest: Guest, listeners: Listeners, *, reports: bool) -> None:
        self._guest = guest
        self._listeners = listeners
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

    async def WatchListeners(  # noqa: N802
        self, request: guest_init_pb2.WatchListenersRequest, context: Context
    ) -> AsyncIterator[guest_init_pb2.WatchListenersResponse]:
        """Stream the ports on which the guest listens."""
        async for found in self._listeners.watch():
            answer = guest_init_pb2.WatchListenersResponse()
            for each in found:
                answer.listeners.add(port=each.port, ipv4=each.ipv4, ipv6=each.ipv6)
            yield answer


def servicer(guest: Guest, listeners: Listeners, *, reports: bool) -> Servicer:
    """Make the service of one guest; see GuestInitServicer."""
    add = guest_init_pb2_grpc.add_GuestInitServicer_to_server
    return Servicer(add, GuestInitServicer(guest, listeners, reports=reports), GUEST_INIT)

"""GuestInit over gRPC, which a WSLC session calls.

Owns the edge between protobuf and services.guest_init.guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc

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
    """Serves porthole.guest.v1.GuestInit for one guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    async def GetVersion(  # noqa: N802
        self, request: guest_init_pb2.GuestInitGetVersionRequest, context: Context
    ) -> guest_init_pb2.GuestInitGetVersionResponse:
        """Announce API versions."""
        return guest_init_pb2.GuestInitGetVersionResponse(version=service_version(GUEST_INIT))

    async def GetGuestCapabilities(  # noqa: N802
        self, request: guest_init_pb2.GetGuestCapabilitiesRequest, context: Context
    ) -> guest_init_pb2.GetGuestCapabilitiesResponse:
        """Return what the kernel publishes now."""
        with tracing.operation("GetGuestCapabilities", vm_traceparent=self._guest.traceparent):
            return guest_init_pb2.GetGuestCapabilitiesResponse(
                capabilities=capabilities_to_proto(self._guest.capabilities())
            )


def servicer(guest: Guest) -> Servicer:
    """Make the service of one guest."""
    return Servicer(
        guest_init_pb2_grpc.add_GuestInitServicer_to_server, GuestInitServicer(guest), GUEST_INIT
    )

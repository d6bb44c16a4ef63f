"""The client of a VM's init channel, over gRPC.

Owns the translation of a report into protobuf.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import guest_init_pb2, guest_init_pb2_grpc

from services.rpc.channel import connect
from services.rpc.convert import capabilities_to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.guest_init.guest import Reading

INIT_CHANNEL: Final = "porthole.guest.v1.InitChannel"


class InitChannelClient:
    """A connected init channel. A method raises the PortholeError of a failed call."""

    def __init__(self, stub: guest_init_pb2_grpc.InitChannelAsyncStub) -> None:
        self._stub = stub

    async def report(self, reading: Reading) -> bool:
        """Report what the guest's kernel publishes; returns whether the owner latched the pool."""
        message = capabilities_to_proto(reading.capabilities)
        message.MergeFromString(reading.unknown_fields)
        request = guest_init_pb2.ReportGuestCapabilitiesRequest(capabilities=message)
        return (await self._stub.ReportGuestCapabilities(request)).pool_latched


@asynccontextmanager
async def init_channel(address: str, wait_s: float) -> AsyncIterator[InitChannelClient]:
    """Connect to the init channel of a VM.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s` seconds.
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    peer = await connect(address, guest_init_pb2_grpc.InitChannelStub, INIT_CHANNEL, wait_s=wait_s)
    try:
        yield InitChannelClient(peer.stub)
    finally:
        await peer.close()

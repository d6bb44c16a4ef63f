"""A small InitChannel. The kernel release in a request selects its answer or failure."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from porthole.guest.v1 import guest_init_pb2 as pb
from porthole.guest.v1 import guest_init_pb2_grpc as pb_grpc

from services.handshake.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.handshake.events import Event
from services.rpc import tracing
from services.rpc.server import Servicer, serve
from services.rpc.settings import ServiceSettings, load
from services.rpc.version import service_version

if TYPE_CHECKING:
    import grpc

SERVICE = "porthole.guest.v1.InitChannel"

ERRORS: dict[str, type[PortholeError]] = {
    kind.kind: kind
    for kind in (
        AlreadyExistsError,
        DeadlineExceededError,
        FailedPreconditionError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnavailableError,
        PortholeError,
    )
}


class Probe(pb_grpc.InitChannelServicer):
    """Answers ReportGuestCapabilities; the kernel release is the kind of an error, or a word."""

    def __init__(self, api_versions: tuple[str, ...] = ("v1",)) -> None:
        self.metadata: dict[str, str] = {}
        self.deadline_s: float | None = None
        self.traceparent = ""
        self.hanging = asyncio.Event()
        self.let_go = asyncio.Event()
        self._api_versions = api_versions

    async def GetVersion(  # noqa: N802
        self, request: pb.InitChannelGetVersionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.InitChannelGetVersionResponse:
        version = service_version(SERVICE)
        version.api_versions[:] = self._api_versions
        return pb.InitChannelGetVersionResponse(version=version)

    async def ReportGuestCapabilities(  # noqa: N802
        self,
        request: pb.ReportGuestCapabilitiesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.ReportGuestCapabilitiesResponse:
        self.deadline_s = context.time_remaining()
        self.traceparent = tracing.current_traceparent()
        word = request.capabilities.kernel_release
        tracing.emit(Event("Reported", {"word": word[:32]}))
        if word in ERRORS:
            raise ERRORS[word]("PROBE_REASON", f"it failed with {word}", bound=4096)
        if word.startswith("echo:"):
            raise InvalidArgumentError("PROBE_ECHO", word, value=word)
        if word == "crash":
            raise ZeroDivisionError("a secret of the implementation")
        if word == "hang":
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.let_go.set()
        return pb.ReportGuestCapabilitiesResponse(pool_latched=True)


def servicer(probe: Probe) -> Servicer:
    return Servicer(pb_grpc.add_InitChannelServicer_to_server, probe, SERVICE)


def report(word: str) -> pb.ReportGuestCapabilitiesRequest:
    request = pb.ReportGuestCapabilitiesRequest()
    request.capabilities.kernel_release = word
    return request


class ProbeSettings(ServiceSettings):
    """Settings of the probe when it runs as a process."""

    name = "probe"


def main() -> None:
    settings = load(ProbeSettings)

    async def on_shutdown() -> None:
        with tracing.operation("OnShutdown"):
            tracing.emit(Event("ShutDown"))
        print("on_shutdown", file=sys.stderr, flush=True)

    async def run() -> None:
        await serve(settings, name="probe", servicers=[servicer(Probe())], on_shutdown=on_shutdown)

    asyncio.run(run())


if __name__ == "__main__":
    main()

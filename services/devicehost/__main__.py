"""`python -m services.devicehost`: one process that serves every device of this machine.

Owns the process's settings and the order of start and shutdown.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from porthole.devicehost.v1 import device_host_pb2_grpc

from services.devicehost import telemetry
from services.devicehost.servicer import SERVICE, DeviceHostServicer
from services.rpc import tracing
from services.rpc.server import Servicer, serve
from services.rpc.settings import ServiceSettings, load

NAME: Final = "devicehost"


class Settings(ServiceSettings):
    """Settings of the device host."""

    name: ClassVar[str] = NAME


async def run(settings: Settings) -> None:
    """Serve until told to stop; every device is torn down and its socket gone afterwards."""
    tracing.setup(NAME, settings)
    servicer = DeviceHostServicer(settings.run_dir.absolute())
    telemetry.observe(servicer.host)
    await serve(
        settings,
        name=NAME,
        servicers=[
            Servicer(
                device_host_pb2_grpc.add_DeviceHostServicer_to_server,
                servicer,
                SERVICE,
            )
        ],
        on_shutdown=servicer.close,
    )


def main() -> None:
    """Read settings and serve."""
    asyncio.run(run(load(Settings)))


if __name__ == "__main__":
    main()

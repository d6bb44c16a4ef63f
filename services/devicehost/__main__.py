"""`python -m services.devicehost`: one process that serves every device of this machine.

Owns the process's settings and the order of start and shutdown.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from pydantic import Field

from services.devicehost import peer_writes, telemetry
from services.devicehost.devices.net.user.installation import PROGRAM as PASST
from services.devicehost.servicer import DeviceHostServicer, device_host_servicer
from services.rpc import tracing
from services.rpc.server import serve
from services.rpc.settings import ServiceSettings, load

NAME: Final = "devicehost"


class Settings(ServiceSettings):
    """Settings of the device host."""

    name: ClassVar[str] = NAME

    passt: str = Field(
        default=PASST,
        description="program of user-mode networks: a path, or a name that is looked for on PATH",
    )

    @property
    def uses_run_dir(self) -> bool:
        """It does: the sockets of its devices."""
        return True


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then tear down every device and remove its socket."""
    tracing.setup(NAME, settings)
    peer_writes.allow_interrupts()
    servicer = DeviceHostServicer(settings.run_dir.absolute(), settings.passt)
    telemetry.observe(servicer.host)
    await serve(
        settings,
        name=NAME,
        servicers=[device_host_servicer(servicer)],
        on_shutdown=servicer.close,
    )


def main() -> None:
    """Read settings and serve."""
    asyncio.run(run(load(Settings)))


if __name__ == "__main__":
    main()

"""`python -m services.guest_init`: the service, and the report of a WSL2 guest.

Owns the process's settings, and how the parts of guest init are put together.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from pydantic import Field, field_validator

from services.guest_init.guest import Guest, guest_from
from services.guest_init.readers import SYSFS_DIR, SysfsReader
from services.guest_init.reporter import report
from services.guest_init.servicer import servicer
from services.rpc.server import serve
from services.rpc.settings import ServiceSettings, checked_address, load


class GuestInitSettings(ServiceSettings):
    """Settings of guest init."""

    name = "guest-init"

    publish_dir: Path = Field(
        default=Path(SYSFS_DIR), description="directory in which the kernel publishes its pool"
    )
    cmdline_file: Path = Field(
        default=Path("/proc/cmdline"), description="file that holds the kernel command line"
    )
    kernel_release: str | None = Field(
        default=None,
        description="release to report for `uname -r`; by default that of the running kernel",
    )
    owner: str | None = Field(
        default=None, description="address of the VM's init channel: report to it at start (WSL2)"
    )
    owner_wait_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds that one attempt waits for the owner"
    )

    @field_validator("owner")
    @classmethod
    def _check_owner(cls, value: str | None) -> str | None:
        return value if value is None else checked_address(value)


async def run(settings: GuestInitSettings) -> None:
    """Serve until SIGTERM. Report at the start if the settings name an owner."""
    guest = guest_from(
        [SysfsReader(settings.publish_dir)], settings.cmdline_file, settings.kernel_release
    )
    # The task first runs when `serve` waits for the first time; telemetry is set up by then.
    reporting = asyncio.create_task(_report(guest, settings))

    async def stop_reporting() -> None:
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting

    await serve(
        settings,
        name=settings.name,
        servicers=[servicer(guest, reports=settings.owner is not None)],
        on_shutdown=stop_reporting,
    )


async def _report(guest: Guest, settings: GuestInitSettings) -> None:
    if settings.owner is not None:
        await report(guest, settings.owner, wait_s=settings.owner_wait_s)


def main() -> None:
    """Run guest init."""
    asyncio.run(run(load(GuestInitSettings)))


if __name__ == "__main__":
    main()

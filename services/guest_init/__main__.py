"""`python -m services.guest_init`: the service, and the report of a WSL2 guest.

Owns the process's settings, and how the parts of guest init are put together. It runs in the guest,
or, with --channel, on the host, for a guest whose process 1 is mini_init.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pydantic import Field, field_validator, model_validator

from services.guest_init.channel.guest_kernel import GuestKernel
from services.guest_init.channel.mini_init import MiniInit
from services.guest_init.control_servicer import control_servicer
from services.guest_init.guest import Guest, ThisKernel, vm_words
from services.guest_init.listeners import PolledListeners, ProcTables, SentTables
from services.guest_init.readers import SYSFS_DIR, VIRTIO_DIR, SysfsReader
from services.guest_init.reporter import report
from services.guest_init.servicer import servicer
from services.rpc.address import UnixAddress, parse_address
from services.rpc.server import serve
from services.rpc.settings import ServiceSettings, checked_address, load

if TYPE_CHECKING:
    from services.guest_init.listeners import Listeners
    from services.rpc.server import Servicer

_CMDLINE_FILE: Final = Path("/proc/cmdline")
_OF_THIS_KERNEL: Final = ("publish_dir", "kernel_release")


class GuestInitSettings(ServiceSettings):
    """Settings of guest init."""

    name = "guest-init"

    publish_dir: Path = Field(
        default=Path(SYSFS_DIR),
        description="directory in which the kernel publishes its pool; by default "
        f"{SYSFS_DIR}, then {VIRTIO_DIR}",
    )
    channel: str | None = Field(
        default=None,
        description="unix:/path of the channel to a Linux guest's mini_init, which reads what its "
        "kernel publishes; not with --publish-dir or --kernel-release",
    )
    guest_wait_s: float = Field(
        default=60.0, gt=0, le=3600, description="seconds that a read waits for mini_init"
    )
    network_fd: int | None = Field(
        default=None,
        ge=3,
        description="socket over which a user-space guest sends the tables of its network, "
        "/proc/net/tcp and tcp6; by default those of the running kernel",
    )
    cmdline_file: Path | None = Field(
        default=None,
        description="file that holds the kernel command line; by default /proc/cmdline, and with "
        "--channel none",
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

    @field_validator("owner", "channel")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        return value if value is None else checked_address(value)

    @model_validator(mode="after")
    def _check_channel(self) -> Self:
        if self.channel is None:
            return self
        if not isinstance(parse_address(self.channel), UnixAddress):
            raise ValueError(f"the channel {self.channel} is not unix:/path")
        given = [name for name in _OF_THIS_KERNEL if name in self.model_fields_set]
        if given:
            raise ValueError(
                f"--{given[0].replace('_', '-')} is for the running kernel, --channel for that of "
                "a Linux guest: leave one of them out"
            )
        return self

    @property
    def channel_path(self) -> Path | None:
        """The socket of the channel."""
        address = None if self.channel is None else parse_address(self.channel)
        return address.path if isinstance(address, UnixAddress) else None


async def run(settings: GuestInitSettings) -> None:
    """Serve until SIGTERM. Report at the start if the settings name an owner."""
    path = settings.channel_path
    mini_init = None if path is None else MiniInit(path)
    guest = _guest(settings, mini_init)
    # The task first runs when `serve` waits for the first time; telemetry is set up by then.
    reporting = asyncio.create_task(_report(guest, settings))

    async def stop() -> None:
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting
        if mini_init is not None:
            await mini_init.close()

    listeners = _listeners(settings, mini_init)
    servicers: list[Servicer] = [servicer(guest, listeners, reports=settings.owner is not None)]
    if mini_init is not None:
        mini_init.start()
        servicers.append(control_servicer(mini_init, guest.traceparent))
    await serve(settings, name=settings.name, servicers=servicers, on_shutdown=stop)


def _guest(settings: GuestInitSettings, mini_init: MiniInit | None) -> Guest:
    default = _CMDLINE_FILE if mini_init is None else None
    words = vm_words(settings.cmdline_file or default)
    if mini_init is None:
        readers = [SysfsReader(settings.publish_dir)]
        if "publish_dir" not in settings.model_fields_set:
            readers.append(SysfsReader(Path(VIRTIO_DIR)))
        return Guest(ThisKernel(readers, settings.kernel_release), words.traceparent, words.vm_id)
    kernel = GuestKernel(mini_init, settings.guest_wait_s, words.traceparent)
    return Guest(kernel, words.traceparent, words.vm_id)


def _listeners(settings: GuestInitSettings, mini_init: MiniInit | None) -> Listeners:
    if mini_init is not None:
        return mini_init
    if settings.network_fd is not None:
        return PolledListeners(SentTables(socket.socket(fileno=settings.network_fd)))
    return PolledListeners(ProcTables())


async def _report(guest: Guest, settings: GuestInitSettings) -> None:
    if settings.owner is not None:
        await report(guest, settings.owner, wait_s=settings.owner_wait_s)
    else:
        await guest.kernel.ready()  # its span is due before anybody asks


def main() -> None:
    """Run guest init."""
    asyncio.run(run(load(GuestInitSettings)))


if __name__ == "__main__":
    main()

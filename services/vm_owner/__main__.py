"""`python -m services.vm_owner`: creates VMs and serves porthole.vmowner.v1.VmOwner.

Owns how the parts are put together. On SIGTERM all VMs are shut down, each in order.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from services.rpc import tracing
from services.rpc.server import serve
from services.rpc.settings import load
from services.vm_owner import telemetry
from services.vm_owner.assembly import MachineSpec, Surroundings, vm_directories
from services.vm_owner.clients import (
    dial_device_host,
    dial_guest_control,
    dial_guest_init,
    dial_machine,
)
from services.vm_owner.device_hosts import DeviceHost, DeviceHosts, DeviceStatus
from services.vm_owner.init_channel import open_init_channel
from services.vm_owner.machines.embedded import START_DEADLINE_S, EmbeddedMachine
from services.vm_owner.machines.external import ExternalMachine
from services.vm_owner.machines.qemu.image import find_image
from services.vm_owner.machines.qemu.installation import Accelerator
from services.vm_owner.machines.qemu.machine import QemuMachine, QemuSettings
from services.vm_owner.manifest import load_manifest
from services.vm_owner.owner import VmOwner
from services.vm_owner.servicer import vm_owner_servicer
from services.vm_owner.settings import OwnerSettings
from services.vm_owner.subnets import SubnetPool
from services.vm_owner.sweeper import Sweeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.vm_owner.machines import Machine

_TELEMETRY = ("trace_file", "metrics_file", "otlp_endpoint", "trace_console", "log_level")


def _environment(settings: OwnerSettings) -> dict[str, str]:
    """Return the telemetry settings that a guest's process inherits, as its environment."""
    values = ((field, getattr(settings, field)) for field in _TELEMETRY)
    return {f"PORTHOLE_{field.upper()}": str(v) for field, v in values if v is not None}


def _qemu_settings(settings: OwnerSettings) -> QemuSettings:
    accelerator = None if settings.qemu_accel == "auto" else Accelerator(settings.qemu_accel)
    return QemuSettings(
        binary=settings.qemu,
        accelerator=accelerator,
        boot_deadline_s=settings.boot_deadline_s,
        environment=_environment(settings),
        dial=dial_guest_control,
    )


def _chosen(asked: str, default: Path | None) -> Path | None:
    path = Path(asked) if asked else default
    return path.absolute() if path else None


def _owner(settings: OwnerSettings) -> VmOwner:
    qemu_settings = _qemu_settings(settings)

    def machine_for(directory: Path, spec: MachineSpec) -> Machine:
        if spec.qemu is not None:
            kernel = _chosen(spec.qemu.kernel, settings.qemu_kernel)
            initramfs = _chosen(spec.qemu.initramfs, settings.qemu_initramfs)
            find = partial(find_image, kernel, initramfs)
            return QemuMachine(directory, find, spec.qemu.cpus or 1, qemu_settings)
        if spec.address:
            wait_s = settings.peer_wait_s
            return ExternalMachine(spec.address, partial(dial_machine, wait_s=wait_s))
        dial = partial(dial_machine, wait_s=START_DEADLINE_S)
        return EmbeddedMachine(directory, _environment(settings), dial)

    device_hosts = {False: settings.devicehost_address, True: settings.elevated_devicehost}

    def connect_device_hosts(
        on_status: Callable[[DeviceStatus], None], on_stream_end: Callable[[bool], None]
    ) -> DeviceHosts:
        dial: dict[bool, Callable[[], Awaitable[DeviceHost]]] = {
            elevated: partial(dial_device_host, address, settings.peer_wait_s)
            for elevated, address in device_hosts.items()
            if address is not None
        }
        return DeviceHosts(dial, on_status, on_stream_end)

    run_dir = settings.run_dir.absolute()
    surroundings = Surroundings(
        run_dir=run_dir,
        manifest=load_manifest(),
        subnets=SubnetPool(settings.subnet_pool),
        capabilities_deadline_s=settings.capabilities_deadline_s,
        machine_for=machine_for,
        open_init_channel=open_init_channel,
        dial_guest_init=partial(dial_guest_init, wait_s=settings.peer_wait_s),
        sweeper=Sweeper(vm_directories(run_dir), [*filter(None, device_hosts.values())]),
    )
    return VmOwner(surroundings, connect_device_hosts)


async def _run(settings: OwnerSettings) -> None:
    owner = _owner(settings)
    try:
        tracing.setup(settings.name, settings)
    except OSError as error:
        raise SystemExit(f"porthole {settings.name}: {error}") from None
    telemetry.observe(owner.snapshot)
    await serve(
        settings,
        name=settings.name,
        servicers=[vm_owner_servicer(owner, load_manifest())],
        on_shutdown=owner.close,
    )


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_run(load(OwnerSettings)))


if __name__ == "__main__":
    main()

"""The devices that the configuration of a VM allows.

Owns the refusals of others: a device that `.wslconfig` switches off is not made behind its back,
without the pool that would have been asked for. Must not know VMs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.errors import FailedPreconditionError
from services.vm_owner.wslconfig import NetworkingMode

if TYPE_CHECKING:
    from services.vm_owner.wslconfig import WslConfig


def require_device(config: WslConfig, device_class: str, asked: str, **facts: str) -> None:
    """Refuse a device that the configuration does not allow.

    Args:
        config: The configuration of the VM.
        device_class: events.FS or events.NET.
        asked: What is asked for, as the subject of a sentence.
        facts: Further facts of the error.

    Raises:
        FailedPreconditionError: VIRTIO_OFF, VIRTIOFS_OFF or NETWORKING_MODE.
    """
    if not config.virtio:
        raise FailedPreconditionError(
            "VIRTIO_OFF",
            f"{asked} needs virtio, which [wsl2] virtio=false or safeMode=true switches off; "
            "create the VM without that line",
            **facts,
        )
    if device_class == events.FS and not config.virtiofs:
        raise FailedPreconditionError(
            "VIRTIOFS_OFF",
            f"{asked} needs virtio-fs, which [wsl2] virtiofs=false or hostFileSystemAccess=false "
            "switches off; create the VM without that line",
            **facts,
        )
    if device_class == events.NET:
        require_adapters(config, asked, **facts)


def require_adapters(config: WslConfig, asked: str, **facts: str) -> None:
    """Refuse virtio adapters in a networking mode that has none.

    Raises:
        FailedPreconditionError: NETWORKING_MODE.
    """
    mode = config.networking_mode
    if mode is not NetworkingMode.VIRTIO_PROXY:
        raise FailedPreconditionError(
            "NETWORKING_MODE",
            f"{asked} is of no use: networking mode {mode} needs no virtio adapters of this owner; "
            "create the VM with [wsl2] networkingMode=VirtioProxy and virtio on",
            mode=mode,
            **facts,
        )

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
    if not config.networking_mode.has_adapters:
        raise _no_adapters(config.networking_mode, asked, **facts)


def networking_mode(
    config: WslConfig, asked_mode: NetworkingMode | None, asked: str, **facts: str
) -> NetworkingMode:
    """Return the mode in which networking is to be configured.

    The configuration decides whether a VM may have adapters, for which its pool is sized; a
    request may choose which, or none.

    Args:
        config: The configuration of the VM.
        asked_mode: The mode that is asked for; None: the configured one.
        asked: What is asked for, as the subject of a sentence.
        facts: Further facts of the error.

    Raises:
        FailedPreconditionError: VIRTIO_OFF or NETWORKING_MODE.
    """
    mode = asked_mode or config.networking_mode
    if mode is NetworkingMode.NONE:
        return mode
    if not mode.has_adapters:
        raise _no_adapters(mode, asked, **facts)
    require_device(config, events.NET, asked, **facts)
    return mode


def _no_adapters(mode: NetworkingMode, asked: str, **facts: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "NETWORKING_MODE",
        f"{asked} is refused: this owner has no adapters in the networking mode {mode}; create the "
        "VM with [wsl2] networkingMode=VirtioProxy or nat, and virtio on",
        mode=mode,
        **facts,
    )

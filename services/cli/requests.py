"""The requests of a user to the VM owner, as values. clients.py sends them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """A request for a share."""

    host_path: str
    tag: str = ""
    options: str = ""
    elevated: bool = False
    aggregate: bool = False


@dataclass(frozen=True, slots=True)
class QemuRequest:
    """A request for a Linux guest in QEMU. Empty and 0: the owner's defaults."""

    kernel: str = ""
    initramfs: str = ""
    cpus: int = 0
    isolation: str = ""


@dataclass(frozen=True, slots=True)
class VmRequest:
    """A request for a VM.

    Attributes:
        machine_address: Address of a running machine; empty: the owner starts the guest.
        qemu: A Linux guest in QEMU; None: the user-space guest, or the running machine.
    """

    kind: str
    ram_bytes: int = 0
    wslconfig: str = ""
    wslconfig_name: str = ""
    kernel_release: str = ""
    publishes_pool: bool | None = None
    machine_address: str = ""
    shares: tuple[ShareRequest, ...] = ()
    qemu: QemuRequest | None = None

"""What a user asks of the VM owner, as values. arguments.py reads them, clients.py sends them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """A directory that a user asks to share."""

    host_path: str
    tag: str = ""
    options: str = ""
    elevated: bool = False
    aggregate: bool = False


@dataclass(frozen=True, slots=True)
class VmRequest:
    """A VM that a user asks for. `machine_address` empty: the owner starts the guest itself."""

    kind: str
    ram_bytes: int = 0
    wslconfig: str = ""
    wslconfig_name: str = ""
    kernel_release: str = ""
    publishes_pool: bool | None = None
    machine_address: str = ""
    shares: tuple[ShareRequest, ...] = ()

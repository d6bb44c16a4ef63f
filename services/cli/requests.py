"""The requests of a user to the VM owner and to a guest's init, as values.

clients.py and guest_control.py send them.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True)
class GuestMount:
    """A request for a mount in a Linux guest.

    Attributes:
        fs_type: Type of the file system.
        source: What is mounted: the tag of a share, or a word for a file system without a source.
        target: Absolute path of the mount point, which is made.
        read_only: Whether nothing can be written through it.
        options: Options of the file system, with commas.
        directories: Absolute paths of directories that are made first.
    """

    fs_type: str
    source: str
    target: str
    read_only: bool = False
    options: str = ""
    directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowSize:
    """The size of a terminal, in characters; 0: unknown."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """A request for a command in a Linux guest.

    Attributes:
        arguments: The first is the program.
        environment: All its variables.
        directory: Its working directory, an absolute path.
        uid: Its user.
        gid: Its group.
        groups: Its supplementary groups.
        terminal: The size of its terminal; None: it has pipes.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    terminal: WindowSize | None = None

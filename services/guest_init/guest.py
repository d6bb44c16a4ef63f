"""The guest that this init serves: its kernel, and the trace to continue.

Owns reading the guest. Must not know gRPC: the servicer and the reporter send what is read here.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from services.guest_init.readers import PoolReader, first_published
from services.guest_init.seccomp import user_notification_available
from services.handshake.capabilities import GuestCapabilities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TRACEPARENT_KEY: Final = "porthole.traceparent"
VM_ID_KEY: Final = "porthole.vm_id"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a kernel publishes.

    Attributes:
        capabilities: The values that this version knows.
        unknown_fields: Fields of the GuestCapabilities message that it does not, encoded.
    """

    capabilities: GuestCapabilities
    unknown_fields: bytes = b""


class Kernel(Protocol):
    """The kernel of a guest."""

    async def ready(self) -> None:
        """Wait until it can be read."""
        ...

    async def read(self) -> Reading:
        """Read what it publishes now; raises a PortholeError when it cannot be reached."""
        ...


class ThisKernel:
    """The kernel that this process runs on.

    Args:
        readers: Readers of the pool, in the order in which they are asked.
        release: `uname -r`; in a user-space guest, the release that it simulates. None: that of the
            running kernel.
    """

    def __init__(self, readers: Sequence[PoolReader], release: str | None) -> None:
        self._readers = tuple(readers)
        self._release = platform.release() if release is None else release

    async def ready(self) -> None:
        """It always is."""

    async def read(self) -> Reading:
        """Read what it publishes now; never raises."""
        return Reading(
            GuestCapabilities(
                pool=first_published(self._readers),
                kernel_release=self._release,
                seccomp_user_notification=user_notification_available(),
            )
        )


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest that this init serves.

    Attributes:
        kernel: Its kernel.
        traceparent: W3C context of the VM from the kernel command line; empty when it has none.
        vm_id: UUID of the VM from the kernel command line; empty when it has none.
    """

    kernel: Kernel
    traceparent: str
    vm_id: str


@dataclass(frozen=True, slots=True)
class VmWords:
    """What the VM owner wrote for guest init on the kernel command line.

    Attributes:
        traceparent: W3C context of the VM; empty when it has none.
        vm_id: UUID of the VM; empty when it has none.
    """

    traceparent: str
    vm_id: str


def vm_words(cmdline_file: Path | None) -> VmWords:
    """Read a kernel command line, usually /proc/cmdline.

    It counts as empty when it is None or cannot be read.
    """
    words = {} if cmdline_file is None else _words(cmdline_file)
    return VmWords(words.get(TRACEPARENT_KEY, ""), words.get(VM_ID_KEY, ""))


def _words(cmdline_file: Path) -> dict[str, str]:
    try:
        text = cmdline_file.read_text("utf-8", "replace")
    except OSError:
        return {}
    pairs = (word.partition("=") for word in text.split())
    return {key: value for key, equals, value in pairs if equals}

"""The guest that this init runs in: its capabilities, and the trace to continue.

Owns reading the guest. Must not know gRPC: the servicer and the reporter send what is read here.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.guest_init.readers import PoolReader, first_published
from services.guest_init.seccomp import user_notification_available
from services.handshake.capabilities import GuestCapabilities

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TRACEPARENT_KEY: Final = "porthole.traceparent"
VM_ID_KEY: Final = "porthole.vm_id"


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest that this init runs in.

    Attributes:
        readers: Readers of the pool, in the order in which they are asked.
        kernel_release: `uname -r`; in a user-space guest, the release that it simulates.
        traceparent: W3C context of the VM from the kernel command line; empty when it has none.
        vm_id: UUID of the VM from the kernel command line; empty when it has none.
    """

    readers: Sequence[PoolReader]
    kernel_release: str
    traceparent: str
    vm_id: str

    def capabilities(self) -> GuestCapabilities:
        """Read what the kernel publishes now."""
        return GuestCapabilities(
            pool=first_published(self.readers),
            kernel_release=self.kernel_release,
            seccomp_user_notification=user_notification_available(),
        )


def guest_from(
    readers: Sequence[PoolReader], cmdline_file: Path, kernel_release: str | None
) -> Guest:
    """Return the guest that this process runs in.

    Args:
        readers: Readers of the pool, in the order in which they are asked.
        cmdline_file: The kernel command line, usually /proc/cmdline; it counts as empty when it
            cannot be read.
        kernel_release: The release to report; None: that of the running kernel.
    """
    words = _words(cmdline_file)
    return Guest(
        readers=tuple(readers),
        kernel_release=platform.release() if kernel_release is None else kernel_release,
        traceparent=words.get(TRACEPARENT_KEY, ""),
        vm_id=words.get(VM_ID_KEY, ""),
    )


def _words(cmdline_file: Path) -> dict[str, str]:
    try:
        text = cmdline_file.read_text("utf-8", "replace")
    except OSError:
        return {}
    pairs = (word.partition("=") for word in text.split())
    return {key: value for key, equals, value in pairs if equals}

"""How much a client may put into a VM: GetVm shows it all in one gRPC message.

Owns these bounds. The owner keeps what it is given in memory as long as the VM lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError, ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Iterable

OPTIONS_LIMIT: Final = 4096
"""Most characters of options in a request."""

TEXTS_LIMIT_BYTES: Final = 1 << 20
"""Most bytes of all devices of a VM, and of all its shares. A gRPC client takes 4 MiB."""

ENTRY_BYTES: Final = 1024
"""What a device or a share counts for beside its texts: its ids, socket and counters."""

Texts = tuple[str, ...]
"""What a client wrote for one device or share: tag, path and options."""


def check_length(name: str, options: str) -> None:
    """Refuse options that are too long.

    Raises:
        InvalidArgumentError: OPTIONS_TOO_LONG.
    """
    if len(options) > OPTIONS_LIMIT:
        raise InvalidArgumentError(
            "OPTIONS_TOO_LONG",
            f"options of {name!r} have {len(options)} characters, more than {OPTIONS_LIMIT}",
            limit=OPTIONS_LIMIT,
        )


def require_room(vm_id: str, what: str, present: Iterable[Texts], more: Texts) -> None:
    """Refuse a device or share for which the description of a VM has no room.

    Args:
        vm_id: UUID of the VM.
        what: "devices" or "shares", for the message.
        present: The texts of those that the VM has.
        more: The texts of the one to be added.

    Raises:
        ResourceExhaustedError: VM_TEXTS_LIMIT, naming used, asked and total in bytes.
    """
    used, asked = sum(map(_size, present)), _size(more)
    if used + asked > TEXTS_LIMIT_BYTES:
        raise ResourceExhaustedError(
            "VM_TEXTS_LIMIT",
            f"the tags, paths and options of VM {vm_id}'s {what} take {used} of "
            f"{TEXTS_LIMIT_BYTES} bytes, and {asked} more are asked for; remove some, or write "
            "shorter options",
            vm_id=vm_id,
            used=used,
            asked=asked,
            total=TEXTS_LIMIT_BYTES,
        )


def _size(texts: Texts) -> int:
    return ENTRY_BYTES + sum(len(text.encode()) for text in texts)

"""The host's root directory as the root of a Linux guest, read-only, below an overlay in memory.

Owns the share that the owner is asked for and the mounts that make a root of it. What a guest runs
then is the host's programs: it needs no image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.cli.guest_control import errno_of
from services.cli.requests import GuestMount, ShareRequest
from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from services.cli.guest_control import GuestClient

ROOT_SHARE: Final = ShareRequest("/", "root", "ro;xattr=all;submounts=off")
"""Nothing can be written, so its attributes, file capabilities among them, are shown as they are.
overlayfs does not enter submounts."""

NEW_ROOT: Final = "/newroot"
"""Where the root is mounted, until it is entered."""

_MEMORY: Final = "/overlay"
"""The file system in memory that has what is written to the root."""


def root_mounts() -> tuple[GuestMount, ...]:
    """Return the mounts that make the new root, in their order.

    /run of the host has sockets and locks of its running programs, which mean nothing in the guest.
    """
    upper, work = f"{_MEMORY}/upper", f"{_MEMORY}/work"
    return (
        GuestMount("tmpfs", "overlay", _MEMORY, options="mode=755"),
        GuestMount(
            "overlay",
            "root",
            NEW_ROOT,
            options=f"lowerdir=/mnt/{ROOT_SHARE.tag},upperdir={upper},workdir={work}",
            directories=(upper, work),
        ),
        GuestMount("tmpfs", "run", f"{NEW_ROOT}/run", options="mode=755"),
    )


async def enter_root(guest: GuestClient) -> None:
    """Make the host's root that of the guest, which has ROOT_SHARE.

    The owner's machine has mounted the guest's shares by then, at places that the new root hides; a
    second mount of a tag is another view of the same file system.

    Raises:
        FailedPreconditionError: GUEST_REQUEST_REFUSED.
    """
    for mount in root_mounts():
        try:
            await guest.mount(mount)
        except FailedPreconditionError as refusal:
            if mount.fs_type != "overlay" or errno_of(refusal) != "ENODEV":
                raise
            raise FailedPreconditionError(
                refusal.reason,
                "the guest's kernel has no overlayfs, which its root needs; build one that has it "
                "with `make kernel` in a checkout, or give another with --kernel",
            ) from None
    await guest.enter_root(NEW_ROOT)

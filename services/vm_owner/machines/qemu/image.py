"""The files that a guest boots: where they are by default, and that they are there.

Owns the explanation of their absence. Must not know what is in them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.handshake.errors import FailedPreconditionError

logger = logging.getLogger(__name__)

_CHECKOUT: Final = Path(__file__).parents[4]
KERNEL: Final = _CHECKOUT / "build/kernel/x86_64/vmlinux"
"""What `make kernel` makes."""
INITRAMFS: Final = _CHECKOUT / ".guest/image/x86_64/initramfs"
"""What `make guest-image` makes."""

MODULES: Final = INITRAMFS.with_name("modules")
"""What `make guest-image` makes for the fetched kernel, whose virtio is modules."""
FETCHED: Final = _CHECKOUT / ".guest/boot"
"""Where `make guest` puts a kernel of Debian."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The files that a guest boots, as absolute paths.

    Attributes:
        initramfs: One archive, or several that follow each other.
    """

    kernel: Path
    initramfs: tuple[Path, ...]


def find_image(kernel: Path | None, initramfs: Path | None) -> GuestImage:
    """Find the files of a guest, and check that they can be read.

    It reads the file system: use a thread.

    Args:
        kernel: None: what `make kernel` made, or else the kernel that `make guest` fetched.
        initramfs: None: what `make guest-image` made, with the modules of a fetched kernel.

    Raises:
        FailedPreconditionError: GUEST_KERNEL_MISSING, or GUEST_IMAGE_MISSING.
    """
    archives: tuple[Path, ...] = (initramfs or INITRAMFS,)
    if kernel is None and not KERNEL.exists() and (fetched := _fetched_kernel()):
        logger.info("%s is missing; booting %s, which publishes no pool", KERNEL, fetched)
        kernel, archives = fetched, archives if initramfs else (INITRAMFS, MODULES)
    kernel = kernel or KERNEL
    _require(kernel, "GUEST_KERNEL_MISSING", "kernel", "make kernel", "--qemu-kernel")
    for path in archives:
        _require(path, "GUEST_IMAGE_MISSING", "initramfs", "make guest-image", "--qemu-initramfs")
    return GuestImage(kernel, archives)


def one_initramfs(image: GuestImage, directory: Path) -> Path:
    """Return one file with all archives, made in a directory if there are several.

    It reads and writes files: use a thread.
    """
    if len(image.initramfs) == 1:
        return image.initramfs[0]
    joined = directory / "initramfs"
    with joined.open("wb") as file:
        for path in image.initramfs:
            file.write(path.read_bytes())
    return joined


def _fetched_kernel() -> Path | None:
    return max(FETCHED.glob("vmlinuz-*"), default=None)


def _require(path: Path, reason: str, what: str, command: str, flag: str) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        why = error.strerror
    raise FailedPreconditionError(
        reason,
        f"the guest's {what} {path} cannot be read: {why}; make it with `{command}` in a checkout, "
        f"or give the owner another one with {flag}",
        path=str(path),
    )

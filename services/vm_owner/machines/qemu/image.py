"""The files that a guest boots: where they are by default, and that they are there.

Owns the explanation of their absence. Must not know what is in them, but for a kernel's header.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.handshake.errors import FailedPreconditionError
from services.vm_owner.machines.qemu.architecture import (
    HEADER_BYTES,
    Architecture,
    architecture_of,
    host_architecture,
)

logger = logging.getLogger(__name__)

_CHECKOUT: Final = Path(__file__).parents[4]
BUILT: Final = _CHECKOUT / "build/kernel"
"""Where `make kernel` puts a kernel for each architecture."""
KERNEL: Final = BUILT / host_architecture().kernel
"""The one for this host's architecture."""
IMAGES: Final = _CHECKOUT / ".guest/image"
"""Where `make guest-image` puts an initramfs for each architecture."""
INITRAMFS: Final = IMAGES / host_architecture().image / "initramfs"
"""The one for this host's architecture."""

MODULES: Final = INITRAMFS.with_name("modules")
"""What `make guest-image` makes for the fetched kernel, whose virtio is modules."""
FETCHED: Final = _CHECKOUT / ".guest/boot"
"""Where `make guest` puts a kernel of Debian."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The files that a guest boots, as absolute paths.

    Attributes:
        initramfs: One archive, or several that follow each other.
        architecture: That of the kernel.
    """

    kernel: Path
    initramfs: tuple[Path, ...]
    architecture: Architecture


def find_image(kernel: Path | None, initramfs: Path | None) -> GuestImage:
    """Find the files of a guest, and check that they can be read.

    It reads the file system: use a thread.

    Args:
        kernel: None: what `make kernel` made, or else the kernel that `make guest` fetched.
        initramfs: None: what `make guest-image` made for the kernel's architecture, with the
            modules of a fetched kernel.

    Raises:
        FailedPreconditionError: GUEST_KERNEL_MISSING, or GUEST_IMAGE_MISSING.
    """
    modules: tuple[Path, ...] = ()
    if kernel is None and not KERNEL.exists() and (fetched := _fetched_kernel()):
        logger.info("%s is missing; booting %s, which publishes no pool", KERNEL, fetched)
        kernel, modules = fetched, (MODULES,)
    kernel = kernel or KERNEL
    header = _header(kernel, "GUEST_KERNEL_MISSING", "kernel", "make kernel", "--qemu-kernel")
    architecture = architecture_of(header)
    archives = (initramfs,) if initramfs else (_initramfs_of(architecture), *modules)
    for path in archives:
        _header(path, "GUEST_IMAGE_MISSING", "initramfs", "make guest-image", "--qemu-initramfs")
    return GuestImage(kernel, archives, architecture)


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


def _initramfs_of(architecture: Architecture) -> Path:
    if architecture is host_architecture():
        return INITRAMFS
    return IMAGES / architecture.image / "initramfs"


def _header(path: Path, reason: str, what: str, command: str, flag: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEADER_BYTES)
    except OSError as error:
        why = error.strerror
    raise FailedPreconditionError(
        reason,
        f"the guest's {what} {path} cannot be read: {why}; make it with `{command}` in a checkout, "
        f"or give the owner another one with {flag}",
        path=str(path),
    )

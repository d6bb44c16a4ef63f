"""The back ends of virtio-fs, and opening the directory of a share.

Owns the errors of a directory that cannot be shared. Must not know devices.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.share.lx_metadata import can_keep
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.options import FsOptions


@dataclass(frozen=True, slots=True)
class FsBackend:
    """A directory of the host, shared by virtio-fs.

    Attributes:
        shared_dir: Absolute path of the directory.
    """

    shared_dir: str


@dataclass(frozen=True, slots=True)
class AggregateBackend:
    """Directories of the host that are shared by one virtio-fs device, added and removed later."""


def open_shared(shared_dir: Path, options: FsOptions) -> Descriptor:
    """Open a directory that is to be shared, as an O_PATH descriptor.

    Args:
        shared_dir: The directory; symlinks in its own path are followed once, now.
        options: The share's.

    Raises:
        InvalidArgumentError: SHARED_DIR_RELATIVE, SHARED_DIR_NOT_A_DIRECTORY or
            SHARED_DIR_UNUSABLE.
        NotFoundError: SHARED_DIR_MISSING.
        PermissionDeniedError: SHARED_DIR_DENIED.
        FailedPreconditionError: METADATA_UNSUPPORTED.
    """
    if not shared_dir.is_absolute():
        raise InvalidArgumentError(
            "SHARED_DIR_RELATIVE",
            f"shared directory {str(shared_dir)!r} is not an absolute path",
            shared_dir=str(shared_dir),
        )
    root = _open(shared_dir)
    if options.metadata and not can_keep(root.path):
        raise FailedPreconditionError(
            "METADATA_UNSUPPORTED",
            f"cannot share {str(shared_dir)!r} with metadata: its file system has no user "
            "extended attributes to keep it in; leave the option out",
            shared_dir=str(shared_dir),
        )
    return root


def _open(shared_dir: Path) -> Descriptor:
    try:
        return Descriptor(os.open(shared_dir, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        kind, reason = _OPEN_ERRORS.get(
            error.errno or 0, (InvalidArgumentError, "SHARED_DIR_UNUSABLE")
        )
        raise kind(
            reason,
            f"cannot share {str(shared_dir)!r}: {error.strerror}; name a directory that the device "
            "host may read",
            shared_dir=str(shared_dir),
        ) from error


_OPEN_ERRORS: Final[dict[int, tuple[type[PortholeError], str]]] = {
    errno.ENOENT: (NotFoundError, "SHARED_DIR_MISSING"),
    errno.ENOTDIR: (InvalidArgumentError, "SHARED_DIR_NOT_A_DIRECTORY"),
    errno.EACCES: (PermissionDeniedError, "SHARED_DIR_DENIED"),
}

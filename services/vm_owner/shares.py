"""Shares: the directories of the host that a VM gets.

Owns the checks of a host path, and the identity of a share (handshake.md section 6). vm.py makes a
share a device, and aggregates.py makes it a part of one.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from services.handshake.options import FsOptions, build_options, parse_fs_options
from services.vm_owner.bounds import check_length
from services.vm_owner.device_names import check_name

if TYPE_CHECKING:
    from services.vm_owner.guest_devices import GuestDevice

PATH_LIMIT_BYTES: Final = 4095
"""Longest host path that is accepted, as in the kernel (PATH_MAX, with a NUL). The standard library
takes minutes to resolve a path of megabytes."""

_ANY_VM: Final = "00000000-0000-0000-0000-000000000000"
"""A placeholder for the VM's id in options that are compared without it."""


@dataclass(frozen=True, slots=True)
class ShareSpec:
    """A requested share.

    Attributes:
        host_path: Absolute path of a directory.
        tag: Mount tag; empty: one is made from the share's id.
        options: "key=value;flag" without name and token.
        elevated: Whether the elevated user's device host serves it.
        aggregate: Whether it becomes a directory of the VM's aggregate device.
    """

    host_path: str
    tag: str = ""
    options: str = ""
    elevated: bool = False
    aggregate: bool = False


@dataclass(frozen=True, slots=True)
class ShareKey:
    """The identity of a share: canonical path, parsed options, and user."""

    canonical_path: str
    options: FsOptions
    elevated: bool


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a VM.

    Attributes:
        device: The device that serves it; an aggregate device serves others as well.
    """

    share_id: str
    spec: ShareSpec
    key: ShareKey
    device: GuestDevice


def share_key(spec: ShareSpec) -> ShareKey:
    """Check a share and return its identity. It reads the file system: see host_paths.py.

    Raises:
        InvalidArgumentError: DEVICE_NAME, AGGREGATE_TAG, OPTIONS_TOO_LONG, SHARE_PATH_SYNTAX, or a
            reason of parse_fs_options.
        NotFoundError: SHARE_PATH_NOT_FOUND.
        PermissionDeniedError: SHARE_PATH_DENIED.
        FailedPreconditionError: SHARE_PATH_NOT_A_DIRECTORY.
    """
    if spec.tag and spec.aggregate:
        raise InvalidArgumentError(
            "AGGREGATE_TAG",
            f"a share of the aggregate device is named by its id, so it cannot have the tag "
            f"{spec.tag!r}; leave out the tag, or aggregate",
            tag=spec.tag,
        )
    if spec.tag:
        check_name(events.FS, spec.tag)
    name = spec.tag or "share"
    check_length(name, spec.options)
    parsed = parse_fs_options(build_options(name, spec.options, None, _ANY_VM))
    return ShareKey(canonical_directory(spec.host_path), replace(parsed, name=""), spec.elevated)


def require_no_conflict(first: ShareSpec, repeated: ShareSpec) -> None:
    """Refuse a share that has the identity of another one but is asked for differently.

    Args:
        first: The share that exists.
        repeated: The present request. Without a tag it takes the tag of the first.

    Raises:
        AlreadyExistsError: SHARE_EXISTS; it names the field that differs.
    """
    if repeated.aggregate != first.aggregate:
        field, had, wanted = "aggregate", str(first.aggregate), str(repeated.aggregate)
    elif repeated.tag and repeated.tag != first.tag:
        field, had, wanted = "tag", repr(first.tag), repr(repeated.tag)
    else:
        return
    raise AlreadyExistsError(
        "SHARE_EXISTS",
        f"{first.host_path!r} is shared with these options already, with {field} {had} and not "
        f"{wanted}; use that share, or remove it first",
        field=field,
        host_path=first.host_path,
    )


def canonical_directory(host_path: str) -> str:
    """Resolve the symbolic links in the path of a directory. It blocks: see host_paths.py.

    Raises:
        InvalidArgumentError: SHARE_PATH_SYNTAX when it is relative, has a NUL, is too long, or
            leads to a path that is not UTF-8.
        NotFoundError: SHARE_PATH_NOT_FOUND.
        PermissionDeniedError: SHARE_PATH_DENIED.
        FailedPreconditionError: SHARE_PATH_NOT_A_DIRECTORY.
    """
    if not host_path.startswith("/") or "\0" in host_path:
        raise InvalidArgumentError(
            "SHARE_PATH_SYNTAX",
            f"host path {host_path!r} is not absolute, or has a NUL; write a whole path",
            host_path=host_path,
        )
    length = len(os.fsencode(host_path))
    if length > PATH_LIMIT_BYTES:
        raise InvalidArgumentError(
            "SHARE_PATH_SYNTAX",
            f"host path {host_path[:64]!r}… has {length} bytes, more than {PATH_LIMIT_BYTES}; "
            "write a shorter path",
            length=length,
            limit=PATH_LIMIT_BYTES,
        )
    try:
        canonical = os.path.realpath(host_path, strict=True)
        is_directory = os.path.isdir(canonical)  # noqa: PTH112 - a string, like that of realpath
    except PermissionError:
        raise PermissionDeniedError(
            "SHARE_PATH_DENIED",
            f"host path {host_path!r}: this owner has no permission to read it",
            host_path=host_path,
        ) from None
    except NotADirectoryError:
        is_directory = False
    except (OSError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else os.strerror(errno.ELOOP)
        raise NotFoundError(
            "SHARE_PATH_NOT_FOUND",
            f"host path {host_path!r} cannot be found: {why}; create it first",
            host_path=host_path,
        ) from None
    if not is_directory:
        raise FailedPreconditionError(
            "SHARE_PATH_NOT_A_DIRECTORY",
            f"host path {host_path!r} is not a directory; share the directory that holds it",
            host_path=host_path,
        )
    try:
        canonical.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "SHARE_PATH_SYNTAX",
            f"host path {host_path!r} leads to {canonical!r}, which is not UTF-8; rename it",
            host_path=host_path,
        ) from None
    return canonical

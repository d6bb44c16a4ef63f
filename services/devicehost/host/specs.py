"""What is asked of the device host: devices, shares of an aggregate, and what they serve.

Owns the checks that need no device. Must not know which devices exist.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.options import (
    FsOptions,
    NetOptions,
    parse_fs_options,
    parse_net_options,
)

_INSTANCE_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FsBackend:
    """A directory of the host, shared by virtio-fs."""

    shared_dir: str


@dataclass(frozen=True, slots=True)
class AggregateBackend:
    """Directories of the host that are shared by one virtio-fs device, added and removed later."""


@dataclass(frozen=True, slots=True)
class NetBackend:
    """A TAP interface of the host, served by virtio-net."""

    tap: str


Options = FsOptions | NetOptions
DeviceBackend = FsBackend | AggregateBackend | NetBackend


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What CreateDevice asks for.

    Attributes:
        vm_id: UUID of the VM.
        instance_id: 1 to 64 letters, digits, '-' and '_'; part of the socket's path.
        tag: Name that the guest sees; the options start with it.
        options: "name;key=value;flag;…;vm_id=<uuid>".
        backend: What the device serves; None is refused.
    """

    vm_id: str
    instance_id: str
    tag: str
    options: str
    backend: DeviceBackend | None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A share that an aggregate device is to have.

    Attributes:
        name: Its name in the device's root; the options start with it.
        options: "name;key=value;flag;…;vm_id=<uuid>".
        shared_dir: Absolute path of the directory.
    """

    name: str
    options: str
    shared_dir: str


def parse_device(spec: DeviceSpec) -> Options:
    """Check what CreateDevice asks for, and parse its options.

    Raises:
        InvalidArgumentError: INSTANCE_ID_SYNTAX, VM_ID_SYNTAX, VM_ID_MISMATCH, TAG_MISMATCH, or as
            parse_fs_options.
    """
    if not _INSTANCE_ID.fullmatch(spec.instance_id):
        raise InvalidArgumentError(
            "INSTANCE_ID_SYNTAX",
            f"instance id {spec.instance_id!r} must be 1 to 64 letters, digits, '-' and '_'",
            instance_id=spec.instance_id,
        )
    net = isinstance(spec.backend, NetBackend)
    options = parse_net_options(spec.options) if net else parse_fs_options(spec.options)
    _require_same(f"device {spec.instance_id}", canonical(spec.vm_id), spec.tag, options)
    return options


def parse_child(child: ChildSpec, vm_id: str) -> FsOptions:
    """Check what AddChild asks for, and parse its options.

    Raises:
        InvalidArgumentError: VM_ID_MISMATCH, TAG_MISMATCH, or as parse_fs_options.
    """
    options = parse_fs_options(child.options)
    _require_same(f"share {child.name!r}", vm_id, child.name, options)
    return options


def _require_same(what: str, vm_id: str, name: str, options: Options) -> None:
    """Refuse options that were written for something else."""
    for reason, given, in_options in (
        ("VM_ID_MISMATCH", vm_id, options.vm_id),
        ("TAG_MISMATCH", name, options.name),
    ):
        if given != in_options:
            raise InvalidArgumentError(
                reason,
                f"{what} is for {given!r}, but its options say {in_options!r}",
                given=given,
                options=in_options,
            )


def canonical(vm_id: str) -> str:
    """Spell a VM's id as it is spelled in options.

    Raises:
        InvalidArgumentError: VM_ID_SYNTAX.
    """
    try:
        return str(uuid.UUID(vm_id))
    except ValueError:
        raise InvalidArgumentError(
            "VM_ID_SYNTAX", f"VM id {vm_id!r} is not a UUID", vm_id=vm_id
        ) from None

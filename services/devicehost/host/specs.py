"""Requests for devices and for shares of an aggregate.

Owns the checks of a request that need no device. Must not know which devices exist.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.devicehost.devices import DEVICE_TYPES
from services.handshake.errors import InvalidArgumentError
from services.handshake.options import parse_fs_options

if TYPE_CHECKING:
    from services.devicehost.devices import DeviceBackend, DeviceOptions
    from services.handshake.capabilities import GuestCapabilities
    from services.handshake.options import FsOptions

_INSTANCE_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device that CreateDevice asks for.

    Attributes:
        vm_id: UUID of the VM.
        instance_id: 1 to 64 letters, digits, '-' and '_'; part of the socket's path.
        tag: Name that the guest sees; the options start with it.
        options: "name;key=value;flag;…;vm_id=<uuid>".
        backend: The directory, interface or network to serve; None is refused.
    """

    vm_id: str
    instance_id: str
    tag: str
    options: str
    backend: DeviceBackend | None


@dataclass(frozen=True, slots=True)
class Published:
    """What the guest of a VM published.

    Attributes:
        capabilities: The values that this version knows.
        message: The whole message, serialized, with the values that it does not know.
    """

    capabilities: GuestCapabilities
    message: bytes


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A share that AddChild asks for.

    Attributes:
        name: Its name in the device's root; the options start with it.
        options: "name;key=value;flag;…;vm_id=<uuid>".
        shared_dir: Absolute path of the directory.
    """

    name: str
    options: str
    shared_dir: str


def parse_device(spec: DeviceSpec) -> tuple[DeviceOptions, DeviceBackend]:
    """Check a request for a device; return its options, parsed, and its back end.

    Raises:
        InvalidArgumentError: INSTANCE_ID_SYNTAX, BACKEND_MISSING, VM_ID_SYNTAX, VM_ID_MISMATCH,
            TAG_MISMATCH, or a reason of parse_fs_options or parse_net_options.
    """
    if not _INSTANCE_ID.fullmatch(spec.instance_id):
        raise InvalidArgumentError(
            "INSTANCE_ID_SYNTAX",
            f"instance id {spec.instance_id!r} must be 1 to 64 letters, digits, '-' and '_'",
            instance_id=spec.instance_id,
        )
    backend = spec.backend
    if backend is None:
        raise InvalidArgumentError(
            "BACKEND_MISSING",
            f"device {spec.instance_id!r} has no back end; set fs, aggregate, net or user",
        )
    options: DeviceOptions = DEVICE_TYPES[type(backend)].parse_options(spec.options)
    _require_same(f"device {spec.instance_id}", canonical(spec.vm_id), spec.tag, options)
    return options, backend


def parse_child(child: ChildSpec, vm_id: str) -> FsOptions:
    """Check a request for a share; return its options, parsed.

    Raises:
        InvalidArgumentError: VM_ID_MISMATCH, TAG_MISMATCH, or a reason of parse_fs_options.
    """
    options = parse_fs_options(child.options)
    _require_same(f"share {child.name!r}", vm_id, child.name, options)
    return options


def _require_same(what: str, vm_id: str, name: str, options: DeviceOptions) -> None:
    """Refuse options that were written for another VM, device or share."""
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
    """Return a VM's id in the spelling that options use.

    Raises:
        InvalidArgumentError: VM_ID_SYNTAX.
    """
    try:
        return str(uuid.UUID(vm_id))
    except ValueError:
        raise InvalidArgumentError(
            "VM_ID_SYNTAX", f"VM id {vm_id!r} is not a UUID", vm_id=vm_id
        ) from None

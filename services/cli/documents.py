"""The JSON documents that commands print with --json, and that of `porthole demo`.

Owns their shapes: the fields of these dataclasses, with their docstrings as descriptions, are the
JSON Schemas in docs/schemas. `SCHEMA` is the name of a document and its version, which rises when
a field goes or changes its meaning. Must not know how a document is filled, or tables.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from services.cli.views import PortView, RateLimitView, ShareView, VersionView, VmView

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class Document(DataclassInstance, Protocol):
        """A dataclass that is a document of its own, not only part of one."""

        SCHEMA: ClassVar[str]


def as_document(value: Document) -> dict[str, object]:
    """Return the JSON form of a document: `schema`, and its fields by name, also nested ones."""
    return {"schema": value.SCHEMA, **dataclasses.asdict(value)}


@dataclass(frozen=True, slots=True)
class VmList:
    """All VMs.

    Attributes:
        vms: The VMs, the oldest first, with those that have ended as long as the owner keeps them.
    """

    SCHEMA: ClassVar[str] = "vm-list.v1"

    vms: tuple[VmView, ...]


@dataclass(frozen=True, slots=True)
class ShareList:
    """The shares of one VM.

    Attributes:
        shares: The shares, the oldest first.
    """

    SCHEMA: ClassVar[str] = "share-list.v1"

    shares: tuple[ShareView, ...]


@dataclass(frozen=True, slots=True)
class AddedShare(ShareView):
    """A share that a VM has now.

    Attributes:
        already_existed: Whether it had an equal one before, which is this one.
    """

    SCHEMA: ClassVar[str] = "added-share.v1"

    already_existed: bool = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class PortList:
    """The ports of the host that are forwarded to one VM.

    Attributes:
        ports: The ports, the oldest first.
    """

    SCHEMA: ClassVar[str] = "port-list.v1"

    ports: tuple[PortView, ...]


@dataclass(frozen=True, slots=True)
class AddedPort(PortView):
    """A port of the host that is forwarded to a guest now."""

    SCHEMA: ClassVar[str] = "added-port.v1"


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """How fast the frames of an adapter may go.

    Attributes:
        instance_id: The adapter.
        tag: Its name.
        transmit: Of frames that the guest sends.
        receive: Of frames that the guest gets.
    """

    SCHEMA: ClassVar[str] = "adapter-limits.v1"

    instance_id: str
    tag: str
    transmit: RateLimitView
    receive: RateLimitView


@dataclass(frozen=True, slots=True)
class AppliedCapabilities:
    """What is in force after a session has applied a guest's capabilities.

    Attributes:
        vm_id: The VM.
        token: The token that each device gets; empty when no pool is latched.
        already_applied: Whether the same was in force before.
    """

    SCHEMA: ClassVar[str] = "applied-capabilities.v1"

    vm_id: str
    token: str
    already_applied: bool


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One breach of one rule of the handshake.

    Attributes:
        rule: Stable name of the rule; docs/handshake.md explains it.
        detail: One sentence for people.
    """

    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class JudgedVm:
    """The verdict on the handshake of one VM.

    Attributes:
        vm_id: The VM.
        kind: WSL2 or WSLC; empty when the trace does not say.
        token: The latched token; empty when no pool was latched.
        devices: Number of devices in the trace.
        violations: Breaches of rules; none when the handshake is valid.
        valid: Whether no rule is broken.
    """

    vm_id: str
    kind: str
    token: str
    devices: int
    violations: tuple[BrokenRule, ...]
    valid: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on traces.

    Attributes:
        handshake: "valid", or the first broken rule; or the reason why there is no VM to judge, or
            another number of VMs than was expected.
        vms: The verdict on each VM of the traces.
    """

    SCHEMA: ClassVar[str] = "verdict.v1"

    handshake: str
    vms: tuple[JudgedVm, ...]


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of the command and of the running services.

    Attributes:
        porthole: Version of the command.
        api_versions: Versions of the API that the command speaks.
        native_fast_path: Whether this command's fast path is active, or why not.
        services: The services that answered: vm_owner, device_host.
    """

    SCHEMA: ClassVar[str] = "versions.v1"

    porthole: str
    api_versions: tuple[str, ...]
    native_fast_path: str
    services: dict[str, VersionView]


class _VmEvent:
    SCHEMA: ClassVar[str] = "vm-event.v1"
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StateEvent(_VmEvent):
    """The state of the VM.

    Attributes:
        event: The kind of the event.
        state: created, booted, running, shutting-down or terminated.
    """

    event: Literal["state"] = field(default="state", kw_only=True)
    state: str


@dataclass(frozen=True, slots=True)
class WarningEvent(_VmEvent):
    """A warning about the VM.

    Attributes:
        event: The kind of the event.
        id: Stable name of the warning.
        text: The warning, for people.
    """

    event: Literal["warning"] = field(default="warning", kw_only=True)
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class DeviceEvent(_VmEvent):
    """A change of a device.

    Attributes:
        event: The kind of the event.
        instance_id: The device.
        tag: Its tag.
        state: Its state, as in `vm show`.
        detail: Why, for people; may be empty.
    """

    event: Literal["device"] = field(default="device", kw_only=True)
    instance_id: str
    tag: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class PoolLatchedEvent(_VmEvent):
    """The pool that the VM has latched.

    Attributes:
        event: The kind of the event.
        base: First guest-physical address.
        size_bytes: Size.
    """

    event: Literal["pool_latched"] = field(default="pool_latched", kw_only=True)
    base: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ExhaustedEvent(_VmEvent):
    """A device has used up a bounded resource.

    Attributes:
        event: The kind of the event.
        instance_id: The device.
        tag: Its tag.
        resource: Name of the resource; docs/limits.md has them all.
        used: What is in use, in the unit of the resource.
        total: The bound.
        detail: The same, for people.
    """

    event: Literal["exhausted"] = field(default="exhausted", kw_only=True)
    instance_id: str
    tag: str
    resource: str
    used: int
    total: int
    detail: str


@dataclass(frozen=True, slots=True)
class UnknownEvent(_VmEvent):
    """An event of an owner that is newer than this command.

    Attributes:
        event: The kind of the event.
    """

    event: Literal["unknown"] = field(default="unknown", kw_only=True)


VmEvent = StateEvent | WarningEvent | DeviceEvent | PoolLatchedEvent | ExhaustedEvent | UnknownEvent

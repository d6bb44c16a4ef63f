"""What a trace is made of: the attributes of each event, and the services that emit it.

Must not know spans or rules. services.handshake.events makes the events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events

if TYPE_CHECKING:
    from collections.abc import Mapping

WSL2: Final = "WSL2"
WSLC: Final = "WSLC"

OWNER: Final = "owner"
GUEST_INIT: Final = "guest-init"
DEVICE_HOST: Final = "devicehost"

FIRST_KERNEL_WITH_POOL: Final = "6.18.26.3-1"
"""The first kernel that publishes its pool; equal to the owner's manifest."""

UNRECORDED_CALLERS: Final = frozenset(
    {
        "porthole.vmowner.v1.VmOwner",
        "porthole.guest.v1.GuestControl",
        "porthole.guest.v1.GuestInit",
        "porthole.guest.v1.InitChannel",
        "porthole.machine.v1.Workload",
    }
)
"""gRPC services whose callers need not be in a trace: a client records spans where it likes, and a
guest's init ends its spans after the owner has answered it."""

OF_OTHER_KIND: Final = {
    WSL2: (events.WSLC_READ, events.WSLC_APPLY),
    WSLC: (events.GUEST_KERNEL_INFO,),
}
"""Events that a VM of a kind cannot have."""

_POOL: Final = {events.POOL_BASE: int, events.POOL_SIZE_BYTES: int}
_DEVICE: Final = {events.DEVICE_ID: str, events.DEVICE_CLASS: str, events.DEVICE_TAG: str}
_PORT: Final = {
    events.PORT_PROTOCOL: str,
    events.PORT_ADDRESS: str,
    events.PORT_NUMBER: int,
    events.GUEST_PORT: int,
}

VOCABULARY: Final[Mapping[str, Mapping[str, type]]] = {
    events.VM_CREATED: {
        events.VM_KIND: str,
        events.RAM_BYTES: int,
        events.VIRTIO: bool,
        events.DEVICE_BOUNCES: bool,
        events.CONFIGURED_BYTES: int,
        events.REQUESTED_BYTES: int,
    },
    events.GUEST_BOOTED: {events.RAM_BASE: int},
    events.GUEST_KERNEL_INFO: {
        **_POOL,
        events.KERNEL_RELEASE: str,
        events.KERNEL_MAJOR: int,
        events.KERNEL_MINOR: int,
        events.KERNEL_PATCH: int,
        events.SECCOMP: bool,
    },
    events.WSLC_READ: {**_POOL, events.KERNEL_RELEASE: str},
    events.WSLC_APPLY: {**_POOL, events.KERNEL_RELEASE: str},
    events.POOL_LATCHED: {**_POOL, events.TOKEN: str},
    events.POOL_NOT_AS_REQUESTED: {**_POOL, events.REQUESTED_BYTES: int},
    events.POOL_REFUSED: {**_POOL, events.REASON: str, events.DETAIL: str},
    events.KERNEL_UNSUPPORTED: {events.DETAIL: str},
    events.DEVICE_HOST_UNSUPPORTED: {events.DETAIL: str},
    events.DEVICE_ADDED: {
        **_DEVICE,
        events.DEVICE_OPTIONS: str,
        events.DEVICE_HOST_FEATURES: str,
    },
    events.APERTURE_CREATED: {**_DEVICE, **_POOL},
    events.WINDOWS_ENABLED: {**_DEVICE, **_POOL},
    events.FIRST_REQUEST: _DEVICE,
    events.LINK_CHANGED: {**_DEVICE, events.LINK: str, events.DETAIL: str},
    events.DEVICE_REMOVED: _DEVICE,
    events.NETWORKING_FALLBACK: {
        events.NETWORKING_ASKED: str,
        events.REASON: str,
        events.DETAIL: str,
    },
    events.NETWORKING_CONFIGURED: {
        events.NETWORKING_ASKED: str,
        events.NETWORKING_MODE: str,
        events.NETWORKING_ADAPTERS: str,
    },
    events.PORT_MAPPED: _PORT,
    events.PORT_UNMAPPED: _PORT,
    events.GUEST_INIT_ENDED: {events.DETAIL: str},
    events.HANDSHAKE_VERDICT: {
        events.STAGE: str,
        events.VERDICT: str,
        events.BROKEN_RULES: str,
    },
    events.VM_TERMINATED: {},
}
"""Every event of the handshake, and the attributes that it must have in addition to the VM's id."""

FROM_DEVICE_HOST: Final = (
    events.APERTURE_CREATED,
    events.WINDOWS_ENABLED,
    events.FIRST_REQUEST,
    events.LINK_CHANGED,
)
"""The events that a device host emits."""

EMITTERS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys((name for name in VOCABULARY if name != events.WSLC_READ), frozenset({OWNER})),
    **dict.fromkeys(FROM_DEVICE_HOST, frozenset({DEVICE_HOST})),
}
"""The services that may emit each event, by the `service.name` of their resource.

A client may add a read of its own to those of ANSWERING.
"""

ANSWERING: Final = frozenset({GUEST_INIT, OWNER})
"""The services that answer a read of capabilities, and emit it."""

OF_DEVICE: Final = tuple(name for name, keys in VOCABULARY.items() if events.DEVICE_ID in keys)
"""The events of a device."""

ATTACHED: Final = (events.APERTURE_CREATED, events.WINDOWS_ENABLED)
"""The events of which one shows that a device has guest memory."""

ANNOUNCEMENTS: Final = (events.GUEST_KERNEL_INFO, events.WSLC_APPLY)
"""The events by which an owner learns capabilities."""

ANSWERS: Final = (events.POOL_LATCHED, events.POOL_REFUSED)
"""The events by which an owner answers the announcement of a pool."""

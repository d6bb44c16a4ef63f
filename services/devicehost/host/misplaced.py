"""What is likely wrong, and what follows, when guest memory lies out of reach of its device.

Owns the sentences. The owner of a VM sees them in the log and in the device's event, because the
guest sees none of it. Must not know rings, messages of a front-end, or when a device finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events

if TYPE_CHECKING:
    from services.handshake.errors import PortholeError

OUTSIDE: Final = "ADDRESS_OUT_OF_BOUNDS"
"""Reason of a ring or a buffer that the device does not reach."""

_NO_SUCH_POOL: Final = "POOL_NOT_IN_GUEST_MEMORY"
_RING_OUTSIDE: Final = "RING_OUTSIDE_APERTURE"

_OTHER_MEMORY: Final = (
    "Likely causes: the token is that of another VM, or of another start of this one; or the "
    "front-end does not share the memory that has the pool (share=on), or not as one region"
)
_OTHER_POOL: Final = (
    "Likely causes: the token is that of another pool; or the guest has no pool for this device "
    "(no swiotlb=force on its command line, or no memory-region of the device in its device tree); "
    "or the front-end has the device with iommu_platform=off"
)
_OTHER_RINGS: Final = (
    "Likely causes: the guest keeps its rings outside its pool, as kernels without a restricted "
    "DMA pool do (then leave rings=inside out); or the token is that of another pool, or aperture= "
    "that of a device in another place; or the front-end has the device with iommu_platform=off"
)
_NOT_SHARED: Final = (
    "Likely cause: the front-end does not share all of the guest's memory (share=on)"
)

_WAITS: Final = (
    "The guest may wait for the device for ever, because QEMU does not report this to it"
)
_FAILS: Final = {
    events.FS: "In the guest the share is mounted, and every use of it fails: Linux says "
    "'Connection refused'",
    events.NET: "In the guest the adapter is there, and no frame passes",
}
_REMEDY: Final = "mend the cause, and start the guest and the device again"


def is_misplaced(error: PortholeError) -> bool:
    """Return whether an error says that guest memory lies where the device does not reach it."""
    return error.reason in (OUTSIDE, _NO_SUCH_POOL, _RING_OUTSIDE)


def refused(error: PortholeError, *, has_pool: bool) -> str:
    """Return the sentences about memory or a ring that was refused; `is_misplaced` is true."""
    return f"{_causes(error, has_pool=has_pool)}. {_WAITS}: {_REMEDY}"


def failed(error: PortholeError, device_class: str, *, has_pool: bool) -> str:
    """Return the sentences about a first request that failed; `is_misplaced` is true.

    Args:
        error: Of the request.
        device_class: events.FS or events.NET.
        has_pool: Whether the device is confined to a pool.
    """
    return f"{_causes(error, has_pool=has_pool)}. {_FAILS[device_class]}; {_REMEDY}"


def _causes(error: PortholeError, *, has_pool: bool) -> str:
    if error.reason == _NO_SUCH_POOL:
        return _OTHER_MEMORY
    if error.reason == _RING_OUTSIDE:
        return _OTHER_RINGS
    return _OTHER_POOL if has_pool else _NOT_SHARED

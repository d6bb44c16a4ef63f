"""Reports of a guest's capabilities, as its owner reads them from the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities, SwiotlbPool

from services.vm_owner.convert import report_from_proto

if TYPE_CHECKING:
    from services.vm_owner.reports import Report

# Field 2000, wire type 2: a value that a newer kernel might publish.
UNKNOWN_FIELD = b"\x82\x7d\x03new"


def reported(
    base: int = 0,
    size_bytes: int = 0,
    kernel_release: str = "",
    seccomp: bool | None = None,
    unknown: bytes = b"",
) -> Report:
    """Return what a guest reported; `unknown` is in wire format."""
    message = GuestCapabilities(kernel_release=kernel_release, seccomp_user_notification=seccomp)
    if base or size_bytes:
        message.swiotlb_pool.CopyFrom(SwiotlbPool(base=base, size_bytes=size_bytes))
    message.MergeFromString(unknown)
    return report_from_proto(message)

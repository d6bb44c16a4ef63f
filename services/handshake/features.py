"""The features that a device host announces in GetVersion.

An owner asks for a feature, and never compares the version of a device host: that is information
for people. A feature that nobody asks for is not announced.
"""

from __future__ import annotations

from typing import Final

SWIOTLB_TOKEN: Final = "swiotlb-token"  # noqa: S105 - WSL's word for a device option
"""The token, in SetSwiotlb and in the options of a device. Without it an owner leaves that out."""

AGGREGATE: Final = "aggregate"
"""Aggregate devices: AddChild and RemoveChild. Without it an owner refuses shares of aggregates."""

APERTURE: Final = "aperture"
"""`aperture=` in the options of a device, which narrows it to its own part of the pool. Without it
an owner refuses devices of VMs with strict isolation."""

GUEST_CAPABILITIES: Final = "guest-capabilities"
"""SetSwiotlb takes the guest's capabilities. Without it an owner announces the token alone."""

USER_NETWORK: Final = "user-network"
"""User-mode networks, `user` in CreateDevice, and their ports: MapPort, UnmapPort, ListPorts.
Without it an owner has no adapters of the mode VirtioProxy."""

RATE_LIMIT: Final = "rate-limit"
"""Rate limits of adapters: SetRateLimit, and `limit_tx=` and `limit_rx=` in options. Without it an
owner refuses to set one."""

SPOOFING: Final = "spoofing"
"""`spoofing=` in the options of an adapter. Without it an owner refuses adapters whose guests have
to keep to their addresses."""

FEATURES: Final = (
    AGGREGATE,
    APERTURE,
    GUEST_CAPABILITIES,
    RATE_LIMIT,
    SPOOFING,
    SWIOTLB_TOKEN,
    USER_NETWORK,
)
"""The features of the device host of this version, sorted."""


def feature_list(features: frozenset[str]) -> str:
    """Return features as one text, for the trace and for people; empty: none."""
    return " ".join(sorted(features))

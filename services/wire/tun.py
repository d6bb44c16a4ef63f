"""TAP interfaces of Linux: the numbers of linux/if_tun.h, and what they mean to virtio-net.

Owns layouts and constants only.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from services.wire import virtio_net

DEVICE: Final = "/dev/net/tun"

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9
TUNSETVNETLE: Final = 0x400454DC
TUNSETCARRIER: Final = 0x400454E2

IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_DETACH_QUEUE: Final = 0x0400
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

F_CSUM: Final = 0x01
F_TSO4: Final = 0x02
F_TSO6: Final = 0x04
F_USO4: Final = 0x20
F_USO6: Final = 0x40
USO: Final = F_USO4 | F_USO6
"""The kernel takes both or none, since Linux 6.2."""

IFREQ_FLAGS: Final = Struct("16sH22x")
IFREQ_INT: Final = Struct("16si20x")
"""struct ifreq (linux/if.h) with the members that its users need."""
INT: Final = Struct("i")

_TO_GUEST: Final = (
    (virtio_net.F_GUEST_TSO4, F_TSO4),
    (virtio_net.F_GUEST_TSO6, F_TSO6),
    (virtio_net.F_GUEST_USO4 | virtio_net.F_GUEST_USO6, USO),
)
_TO_HOST: Final = (
    (virtio_net.F_HOST_TSO4, F_TSO4),
    (virtio_net.F_HOST_TSO6, F_TSO6),
    (virtio_net.F_HOST_USO, USO),
)


def offloads_to_guest(features: int) -> int:
    """Return F_* bits for what a driver that negotiated `features` takes (section 5.1.6.4)."""
    return _offloads(features, virtio_net.F_GUEST_CSUM, _TO_GUEST)


def offloads_to_host(features: int) -> int:
    """Return F_* bits for what a driver that negotiated `features` may send (section 5.1.6.2)."""
    return _offloads(features, virtio_net.F_CSUM, _TO_HOST)


def _offloads(features: int, checksum: int, segments: tuple[tuple[int, int], ...]) -> int:
    if not features & checksum:  # without it there are no segments either (section 5.1.3.1)
        return 0
    return F_CSUM | sum(flag for needed, flag in segments if features & needed == needed)

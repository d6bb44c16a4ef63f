"""The native loops of a virtio-net queue, as Python sets them up.

Owns the library's side of a back end for the thread of one queue, which goes into a loop by
NativeQueue.lend. Must not know queues, or where the descriptor leads.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.devices.net.protocol import received_flags
from services.handshake.errors import ResourceExhaustedError
from services.wire import virtio_net
from services.wire.virtio_net import ETHERNET_HEADER_BYTES, HEADER_BYTES, MAX_FRAME_BYTES

if TYPE_CHECKING:
    from services.devicehost.devices.net.backend import Wire
    from services.devicehost.devices.net.rates import Limits
    from services.devicehost.devices.net.spoofing import Source

_VLAN_TAG_BYTES: Final = 4


class NativeLoop:
    """Moves frames between a ring and a descriptor, without the interpreter's lock.

    Attributes:
        wire: Where frames come from and go to.
        state: What the loops say, from any thread.
    """

    _pointer = 0

    def __init__(
        self,
        library: ctypes.CDLL,
        wire: Wire,
        features: int,
        limits: Limits,
        source: Source | None = None,
        *,
        mtu: int,
    ) -> None:
        """Set the loops up.

        Args:
            library: The native fast path.
            wire: Where frames come from and go to; its descriptor stays open as long as this is
                used.
            features: What was negotiated, as a mask.
            limits: How fast frames may go.
            source: Under which addresses the guest may send; None: under any.
            mtu: Bytes of payload per frame that is not to be segmented.

        Raises:
            ResourceExhaustedError: RING_MEMORY.
        """
        self._library: Final = library
        self.wire: Final = wire
        self._limits: Final = limits  # the loops use them
        stream = wire.state
        # Buffers for the longest frame that is likely to come are taken before it is read.
        usual = ETHERNET_HEADER_BYTES + _VLAN_TAG_BYTES + mtu
        setup = fastpath.PhNetSetup(
            stream=ctypes.addressof(stream) if stream is not None else None,
            receive_limiter=limits.receive.buckets.pointer,
            transmit_limiter=limits.transmit.buckets.pointer,
            fd=wire.fd,
            mergeable=bool(features & virtio_net.F_MRG_RXBUF),
            expected_bytes=HEADER_BYTES
            + (MAX_FRAME_BYTES if features & virtio_net.GUEST_SEGMENTS else usual),
            received_flags=received_flags(features),
            offloads=fastpath.PhNetOffloads(
                csum=bool(features & virtio_net.F_CSUM),
                tso4=bool(features & virtio_net.F_HOST_TSO4),
                tso6=bool(features & virtio_net.F_HOST_TSO6),
                ecn=bool(features & virtio_net.F_HOST_ECN),
                uso=bool(features & virtio_net.F_HOST_USO),
            ),
            source=_declared(source),
        )
        self._pointer = library.ph_net_new(ctypes.byref(setup)) or 0
        if not self._pointer:
            raise ResourceExhaustedError(
                "RING_MEMORY", "a ring gets no memory for the native side of its frames"
            )
        self.state: Final[fastpath.PhNetState] = library.ph_net_state(self._pointer).contents

    def __del__(self) -> None:
        """Free the library's side; the thread that is in a loop references this."""
        if self._pointer:
            self._library.ph_net_free(self._pointer)

    def receive(self, queue: int) -> int:
        """Give frames to the guest; see NativeQueue.lend.

        Returns:
            A fastpath.Outcome: FAILED when the descriptor is of no use any more
            (`state.receive_error`), BOUND when a frame was dropped that needs more than
            fastpath.MOST_HELD chains.
        """
        outcome: int = self._library.ph_net_receive(queue, self._pointer)
        return outcome

    def transmit(self, queue: int) -> int:
        """Send the frames of the guest; see NativeQueue.lend.

        Returns:
            A fastpath.Outcome: FAILED (`state.transmit_error`) for a stream only.
        """
        outcome: int = self._library.ph_net_transmit(queue, self._pointer)
        return outcome


def _declared(source: Source | None) -> fastpath.PhNetSource:
    declared = fastpath.PhNetSource(is_checked=source is not None)
    if source is not None:
        declared.mac[:] = source.mac
        declared.has_ipv4 = source.ipv4 is not None
        declared.ipv4[:] = source.ipv4 or bytes(4)
    return declared

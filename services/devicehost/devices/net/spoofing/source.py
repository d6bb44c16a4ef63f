"""Under which addresses a guest sends: a frame of another station's is dropped.

Owns what is looked at: the source of the Ethernet header, and in an ARP packet the sender's MAC and
IPv4 address, also behind VLAN tags. libvirt has these rules as no-mac-spoofing and no-arp-spoofing.
It looks at a copy of the start of a frame, which is what is sent: the guest may change the
original. native/net_source.c is the same. Must not know queues or the back end.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

START_BYTES: Final = 64
"""How much of a frame is copied; two VLAN tags and an ARP packet end before."""

_SOURCE: Final = slice(6, 12)
_TYPE: Final = 12
_ETHERTYPE: Final = Struct(">H")
_TAG_BYTES: Final = 4
_MOST_TAGS: Final = 2
_TAGS: Final = (0x8100, 0x88A8)
"""ETH_P_8021Q and ETH_P_8021AD (linux/if_ether.h)."""
_ARP: Final = 0x0806
_ARP_PACKET: Final = Struct(">6s2x6s4s10x")
"""RFC 826: kind, sender's MAC, sender's IPv4 address; after the kind comes the operation."""
_ARP_KIND: Final = b"\x00\x01\x08\x00\x06\x04"
"""Ethernet and IPv4, and the lengths of their addresses."""
_NO_IPV4: Final = bytes(4)
"""Of a probe, whose sender has no address yet (RFC 5227, section 1.1)."""


@dataclass(frozen=True, slots=True)
class Source:
    """The addresses of an adapter.

    Attributes:
        mac: 6 bytes.
        ipv4: 4 bytes; None: not known, so ARP packets may have any.
    """

    mac: bytes
    ipv4: bytes | None = None

    def is_own(self, start: bytes, checksum_at: int = 0) -> bool:
        """Return whether a guest may send a frame.

        Args:
            start: Its first bytes: all of them, or START_BYTES; an Ethernet header at least.
            checksum_at: Where the kernel writes two bytes of a checksum that the guest asks for,
                which must not be where it was looked; 0: it does not.
        """
        if start[_SOURCE] != self.mac:
            return False
        at = _TYPE
        while (kind := _ETHERTYPE.unpack_from(start, at)[0]) in _TAGS:
            at += _TAG_BYTES
            if at > _TYPE + _MOST_TAGS * _TAG_BYTES or len(start) < at + _ETHERTYPE.size:
                return False
        end = at + _ETHERTYPE.size
        if checksum_at and (checksum_at < end or kind == _ARP):
            return False
        return kind != _ARP or self._is_own_arp(start[end:])

    def _is_own_arp(self, packet: bytes) -> bool:
        if len(packet) < _ARP_PACKET.size:
            return False
        kind, mac, ipv4 = _ARP_PACKET.unpack_from(packet)
        if (kind, mac) != (_ARP_KIND, self.mac):
            return False
        return self.ipv4 is None or ipv4 in (self.ipv4, _NO_IPV4)

"""The cases: each is one load on a network, and the matrix lists those of a run.

Owns the matrix. Must not know programs or how a load is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from bench.cases import Size

STREAM_BYTES: Final = 128 << 10
"""Bytes that one call sends on a TCP stream (iperf3's own)."""


class Load(Enum):
    """What the two ends do.

    Its value is the unit of the case's rate.
    """

    TCP = "Gbit/s"
    UDP = "packets/s"
    PING = "echoes/s"
    ECHO = "requests/s"
    HTTP = "HTTP requests/s"
    CONNECT = "connections/s"


class Direction(Enum):
    """Who sends, of the loads that go one way."""

    UP = "up"
    """The guest."""
    DOWN = "down"
    """The host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetCase:
    """One load.

    Attributes:
        load: What the two ends do.
        direction: Who sends; the guest opens connections either way.
        streams: Connections at the same time.
        bytes: Payload of a datagram, a ping or a request; for TCP that of one call.
    """

    load: Load
    direction: Direction = Direction.UP
    streams: int = 1
    bytes: int = 64

    @property
    def name(self) -> str:
        """A short description, unique in the matrix."""
        if self.load is Load.TCP:
            streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
            return f"TCP {self.direction.value}, {streams}"
        if self.load is Load.UDP:
            return f"UDP {self.direction.value}, {self.bytes} bytes"
        return _NAMES[self.load]

    @property
    def is_timed(self) -> bool:
        """Whether it has times of single operations."""
        return self.load not in (Load.TCP, Load.UDP)


_NAMES: Final = {
    Load.PING: "ping",
    Load.ECHO: "64-byte request and response",
    Load.HTTP: "HTTP requests, 8 connections",
    Load.CONNECT: "connections, one after the other",
}


def matrix(size: Size) -> list[NetCase]:
    """List the cases of a run."""
    up, down = Direction.UP, Direction.DOWN
    smoke = [
        NetCase(load=Load.TCP, direction=up, bytes=STREAM_BYTES),
        NetCase(load=Load.UDP, direction=up),
        NetCase(load=Load.ECHO),
    ]
    if size is Size.SMOKE:
        return smoke
    return [
        *(
            NetCase(load=Load.TCP, direction=direction, streams=streams, bytes=STREAM_BYTES)
            for streams in (1, 4)
            for direction in (up, down)
        ),
        *(
            NetCase(load=Load.UDP, direction=direction, bytes=size_bytes)
            for size_bytes in (64, 1400)
            for direction in (up, down)
        ),
        NetCase(load=Load.PING, bytes=56),
        NetCase(load=Load.ECHO),
        NetCase(load=Load.HTTP, streams=8),
        NetCase(load=Load.CONNECT),
    ]

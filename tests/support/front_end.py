"""A vhost-user front-end for tests of the back-end, which can send any message.

services.simguest has the front-end that keeps to the protocol.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Self

from services.wire import vhost_user as wire
from tests.support.guest_ring import USER_BASE, GuestRam, GuestRing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEADLINE_S = 10.0


class RawFrontEnd:
    """One connection to a device's socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0
    ) -> None:
        self.send_raw(wire.message(request, payload, flags), fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [data], list(fds))

    def receive(self) -> tuple[wire.Header, bytes]:
        header = wire.Header.parse(self._exactly(wire.HEADER_BYTES))
        return header, self._exactly(header.size)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.send(request, payload)
        header, answer = self.receive()
        assert header.request == request
        assert header.flags == wire.VERSION | wire.FLAG_REPLY
        return answer

    def ask_u64(self, request: int) -> int:
        (value,) = wire.U64.unpack(self.ask(request))
        assert isinstance(value, int)
        return value

    def command(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send with need_reply and return the outcome: 0 for success."""
        self.send(request, payload, fds, wire.FLAG_NEED_REPLY)
        header, answer = self.receive()
        assert header.request == request
        (value,) = wire.U64.unpack(answer)
        assert isinstance(value, int)
        return value

    def negotiate(self, without_virtio: int = 0) -> int:
        """Accept everything that is offered but ACCESS_PLATFORM; return the virtio features."""
        self.send(wire.Request.SET_OWNER)
        features = self.ask_u64(wire.Request.GET_FEATURES) & ~(1 << 33) & ~without_virtio
        protocol = self.ask_u64(wire.Request.GET_PROTOCOL_FEATURES)
        self.send(wire.Request.SET_PROTOCOL_FEATURES, wire.U64.pack(protocol))
        assert self.command(wire.Request.SET_FEATURES, wire.U64.pack(features)) == 0
        return features

    def attach(self, *rams: GuestRam) -> int:
        regions = [
            wire.MemRegion(ram.gpa, ram.size_bytes, USER_BASE + ram.gpa, ram.file_offset)
            for ram in rams
        ]
        fds = [ram.fd for ram in rams]
        return self.command(wire.Request.SET_MEM_TABLE, wire.pack_mem_table(regions), fds)

    def set_addr(self, index: int, ring: GuestRing) -> int:
        addr = wire.VringAddr(
            index, 0, USER_BASE + ring.desc, USER_BASE + ring.used, USER_BASE + ring.avail, 0
        )
        return self.command(wire.Request.SET_VRING_ADDR, addr.pack())

    def state(self, request: int, index: int, num: int) -> int:
        return self.command(request, wire.VringState(index, num).pack())

    def start(self, index: int, ring: GuestRing, events: RingEvents) -> None:
        """Set a ring up in QEMU's order and enable it."""
        assert self.state(wire.Request.SET_VRING_NUM, index, ring.size) == 0
        assert self.state(wire.Request.SET_VRING_BASE, index, ring.next_avail) == 0
        assert self.set_addr(index, ring) == 0
        assert self.command(wire.Request.SET_VRING_KICK, wire.U64.pack(index), [events.kick]) == 0
        assert self.command(wire.Request.SET_VRING_CALL, wire.U64.pack(index), [events.call]) == 0
        assert self.command(wire.Request.SET_VRING_ERR, wire.U64.pack(index), [events.err]) == 0
        assert self.state(wire.Request.SET_VRING_ENABLE, index, 1) == 0

    def get_base(self, index: int) -> int:
        answer = self.ask(wire.Request.GET_VRING_BASE, wire.VringState(index, 0).pack())
        state = wire.VringState.parse(answer)
        assert state.queue == index
        return state.num

    def is_closed(self) -> bool:
        """Wait for the back-end's next message; return whether the connection ends instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionError("the back-end has closed the connection")
            data += part
        return data


class RingEvents:
    """The three eventfds of a ring."""

    def __init__(self) -> None:
        self.kick, self.call, self.err = (os.eventfd(0) for _ in range(3))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

"""The rules of a ring that C and Python both have are the same."""

from __future__ import annotations

import re
from pathlib import Path

from services.devicehost.devices.net.user import stream
from services.devicehost.fastpath import declarations
from services.devicehost.virtio import chain, deferral, queue
from services.handshake import pool
from services.wire import virtio_net

HEADER = Path(__file__).resolve().parents[3] / "native" / "queue_private.h"

OURS = {
    "PH_SPIN_NS": queue.SPIN_NS,
    "PH_SPIN_MIN_NS": queue.SPIN_MIN_NS,
    "PH_BATCH_REQUESTS": queue.BATCH_REQUESTS,
    "PH_BATCH_BYTES": queue.BATCH_BYTES,
    "PH_MIN_INDIRECT_LIMIT": chain.MIN_INDIRECT_LIMIT,
    "PH_SLOT_BYTES": pool.SLOT_BYTES,
    "PH_MAX_CHAIN_BYTES": chain.MAX_CHAIN_BYTES,
}


def test_each_has_the_same_value() -> None:
    found = re.findall(
        r"\b(PH_[A-Z_]+)(?: = |\s+)(0x[0-9a-f]+|\d+)u?(?: << (\d+))?[,\n]", HEADER.read_text()
    )
    assert {name: int(base, 0) << int(shift or 0) for name, base, shift in found} == OURS


def test_frames_have_the_same_bounds() -> None:
    assert declarations.MOST_HELD == deferral.MAX_QUEUED
    assert declarations.NET_HEADER_BYTES == virtio_net.HEADER_BYTES
    assert declarations.ETHERNET_HEADER_BYTES == virtio_net.ETHERNET_HEADER_BYTES
    assert declarations.MAX_FRAME_BYTES == virtio_net.MAX_FRAME_BYTES
    assert declarations.MAX_STREAM_FRAME_BYTES == stream.MAX_STREAM_FRAME_BYTES

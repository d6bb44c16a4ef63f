"""Compares one bounce pool for all devices of a user-space guest with a pool for each.

Owns the two guests that are compared. Both have the same devices, the same work and the same amount
of pool memory. Most of the measured time is spent in the guest's own code, which is Python. Must
not know goals or how figures are reported.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import trees
from bench.cases import KIB, MIB, WORKING_SET_BYTES, Medium
from bench.results import PoolRow
from bench.targets import Place, start_host
from services.handshake import events
from services.handshake.pool import PAGE_BYTES, Gpa, SwiotlbPool
from services.simguest.fs.driver import FsDriver
from services.simguest.fs.operations import FsOperations
from services.simguest.guest import KINDS
from services.simguest.kernel import IMAGE_END
from services.simguest.memory.bounce import BouncePool
from services.simguest.memory.ram import GuestRam
from services.simguest.virtio.device import DeviceMemory, VirtioDevice
from services.wire import fuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.rounds import Settings
    from bench.targets import Running

BLOCKS: Final = (4 * KIB, 128 * KIB)
DEPTH: Final = 4
"""Reads in flight on each device."""
POOL_BYTES: Final = 64 * MIB
"""Size of the one pool, or of all pools together; either way 16 devices' reads fit in."""


def measure(settings: Settings, counts: Sequence[int]) -> Iterator[PoolRow]:
    """Measure a pair of guests for each number of devices; the two take turns in each round.

    Raises:
        OSError: A device answered wrongly.
        PortholeError: A device is gone.
    """
    with _on(settings.driver_cpus):
        for count in counts:
            with contextlib.ExitStack() as stack:
                one, each = (
                    stack.enter_context(_guest(settings, count, pools)) for pools in (1, count)
                )
                for block_bytes in BLOCKS:
                    rates: dict[int, list[float]] = {0: [], 1: []}
                    for number in range(settings.rounds):
                        for turn in (number % 2, (number + 1) % 2):
                            guest = (one, each)[turn]
                            rates[turn].append(_rate(guest, block_bytes, settings))
                    yield PoolRow(
                        devices=count,
                        block_bytes=block_bytes,
                        one_pool=rates[0],
                        pool_each=rates[1],
                    )


class Reader:
    """Reads a file of one device at random offsets, `DEPTH` blocks at a time."""

    def __init__(self, operations: FsOperations, seed: int) -> None:
        self._operations = operations
        self._random = random.Random(seed)  # noqa: S311  # the same offsets each time
        self._node = operations.lookup(fuse.FUSE_ROOT_ID, trees.READ_FILE.encode()).nodeid
        self._handle = operations.begin_open(self._node).result()

    def read(self, block_bytes: int) -> int:
        """Read `DEPTH` blocks, check their contents, and return their number."""
        blocks = [self._random.randrange(WORKING_SET_BYTES // block_bytes) for _ in range(DEPTH)]
        begun = [
            self._operations.begin_read(self._node, self._handle, block * block_bytes, block_bytes)
            for block in blocks
        ]
        for block, pending in zip(blocks, begun, strict=True):
            data = pending.result()
            first = int.from_bytes(data[:8], "little")
            page = block * block_bytes // PAGE_BYTES
            if len(data) != block_bytes or first != trees.page_stamp(trees.SEED, page):
                raise OSError(f"{len(data)} bytes that are not those of block {block}")
        return DEPTH


@contextlib.contextmanager
def _guest(settings: Settings, count: int, pools: int) -> Iterator[list[Reader]]:
    """Set up a guest with `count` devices and `pools` pools, `POOL_BYTES` in total."""
    size = POOL_BYTES // pools
    ranges = [SwiotlbPool(Gpa(IMAGE_END + i * size), size) for i in range(pools)]
    place = Place(
        Path(tempfile.mkdtemp(dir=settings.run_dir)),
        settings.shared[Medium.TMPFS],
        settings.device_cpus,
    )
    of_device = [i * pools // count for i in range(count)]
    tokens = [f"0x{ranges[i].base:x},{size}" for i in of_device]
    ram = GuestRam(IMAGE_END + POOL_BYTES)
    bounce = [BouncePool(ram, pool) for pool in ranges]
    with contextlib.ExitStack() as stack:
        running: Running = stack.enter_context(start_host(place, tokens, native=True))
        stack.callback(ram.close)
        readers = []
        for number, (path, pool) in enumerate(zip(running.sockets, of_device, strict=True)):
            device = VirtioDevice(
                f"device {number}",
                Path(path),
                KINDS[events.FS],
                DeviceMemory(ram, bounce[pool], bounce[pool]),
            )
            stack.callback(device.close)
            driver = FsDriver(device)
            driver.start()
            stack.callback(driver.stop)
            readers.append(Reader(FsOperations(driver), number))
        yield readers


def _rate(readers: Sequence[Reader], block_bytes: int, settings: Settings) -> float:
    """Run all readers for one measurement; return their reads per second, all together."""
    done = [0] * len(readers)
    failed: list[Exception] = []
    begin = time.monotonic() + settings.warmup_s
    end = begin + settings.seconds

    def run(number: int) -> None:
        try:
            while (now := time.monotonic()) < end:
                count = readers[number].read(block_bytes)
                done[number] += count if now >= begin else 0
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(readers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return round(sum(done) / (time.monotonic() - begin), 1)


@contextlib.contextmanager
def _on(cpus: Sequence[int]) -> Iterator[None]:
    """Pin this thread, and the threads that it starts, to `cpus`; empty: to none."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

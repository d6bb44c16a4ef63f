"""Runs the native front-end (bench/front_end) and reads what it prints.

Owns the command line between the two. Must not know which device is driven.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from bench.cases import WORKING_SET_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Case

PROGRAM: Final = Path("build/bench/front_end")
POOL_BASE: Final = 0x4100_0000
"""Guest-physical address of the front-end's pool: RAM_GPA + POOL_AT of ram.h."""
POOL_BYTES: Final = 128 << 20
POOL: Final = f"0x{POOL_BASE:x},{POOL_BYTES}"
DEADLINE_S: Final = 120.0
"""Longest that a run of the front-end takes; it gives up by itself when a device hangs for 60 s."""


class FrontEndError(Exception):
    """The front-end failed: the device answered wrongly, or not at all."""


class Percentiles(BaseModel):
    """Times of single operations, in nanoseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    p50: int
    p90: int
    p99: int
    p999: int
    max: int


class Measurement(BaseModel):
    """The figures of one run of the front-end.

    Attributes:
        operation: Name of the operation.
        ops: Operations completed in the measured time.
        bytes: Bytes that they moved.
        entries: Directory entries that they listed.
        seconds: The measured time; for listings, the sum of their times.
        checked_pages: Pages whose content was checked.
        device_cpu_s: CPU time of the device's processes, in steps of 10 ms.
        front_end_cpu_s: CPU time of the front-end.
        ns: Times of single operations.
        features: Virtio features that were negotiated.
        fuse_minor: Minor number of the device's FUSE version, 7.fuse_minor.
        max_write_bytes: Largest WRITE that the device accepts.
        parts: Requests per block.
        kicks: Notifications sent to the device.
        interrupts: Notifications that the device sent.
        attach_ns: Time from connecting to the reply to INIT, for each device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: str
    ops: int
    bytes: int
    entries: int
    seconds: float
    checked_pages: int
    device_cpu_s: float
    front_end_cpu_s: float
    ns: Percentiles
    features: int = 0
    fuse_minor: int = 0
    max_write_bytes: int = 0
    parts: int = 1
    kicks: int = 0
    interrupts: int = 0
    attach_ns: list[int] = []

    @property
    def rate(self) -> float:
        """Operations per second; for listings, directory entries per second."""
        return (self.entries or self.ops) / self.seconds if self.seconds else 0.0


def arguments(case: Case, *, seconds: float, warmup_s: float, seed: int) -> list[str]:
    """Write the part of the command line that is the same for every device."""
    given = [
        f"--operation={case.operation}",
        f"--block={case.block_bytes}",
        f"--depth={case.depth}",
        f"--working-set={WORKING_SET_BYTES}",
        f"--span={case.span_bytes}",
        f"--pool-mib={POOL_BYTES >> 20}",
        f"--seconds={seconds}",
        f"--warmup={warmup_s}",
        f"--seed={seed}",
    ]
    for flag in ("sequential", "scattered", "polling"):
        if getattr(case, flag):
            given.append(f"--{flag}")
    return given


def run(
    arguments: Sequence[str], cpus: Sequence[int] = (), under: Sequence[str] = ()
) -> Measurement:
    """Run the front-end once.

    Args:
        arguments: Its command line.
        cpus: CPUs that it may use; empty: all.
        under: A command that runs the front-end and prints nothing itself, for instance perf.

    Raises:
        FrontEndError: It failed; the message is its stderr.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cpus))] if cpus else []
    try:
        done = subprocess.run(
            [*under, *pinned, str(PROGRAM), *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FrontEndError(f"no end after {DEADLINE_S} s: {' '.join(arguments)}") from None
    if done.returncode != 0:
        raise FrontEndError(f"{done.stderr.strip()} ({' '.join(arguments)})")
    return Measurement.model_validate_json(done.stdout)

"""How fast the frames of an adapter may go in one direction: bytes and packets per second.

Owns the bounds, the default bursts, and the text in which options have a limit: `bps=…,pps=…`.
There bps is bytes per second, as in QEMU. Must not know how a limit is kept.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Final

from services.handshake.errors import InvalidArgumentError

LEAST_BPS: Final = 1_000
"""Bytes per second: one frame of 64 KiB takes more than a minute then."""
MOST_BPS: Final = 100_000_000_000
MOST_PPS: Final = 1_000_000_000
MOST_BURST: Final = (1 << 32) - 1
"""In bytes or packets: 2^63 billionths of a token hold it, and the debt of some frames."""

NONE: Final = "none"
"""The text of no limit."""

_LEAST_BURST_BYTES: Final = 65_550
"""By default one frame of any length goes at once."""
_BURSTS_PER_SECOND: Final = 10
"""By default a burst is what comes in a tenth of a second."""

_NUMBER: Final = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit; 0: none, and for a burst the default.

    Attributes:
        bps: Bytes of frames per second, LEAST_BPS to MOST_BPS.
        pps: Frames per second, 1 to MOST_PPS. A segment of up to 64 KiB is one frame.
        burst_bytes: How many bytes may go at once after a pause, 1 to MOST_BURST; by default what
            comes in 100 ms, but 65550 at least.
        burst_packets: The same of frames; by default what comes in 100 ms, but 1 at least.
    """

    bps: int = 0
    pps: int = 0
    burst_bytes: int = 0
    burst_packets: int = 0

    @property
    def most_bytes(self) -> int:
        """The burst in bytes."""
        usual = max(self.bps // _BURSTS_PER_SECOND, _LEAST_BURST_BYTES)
        return self.burst_bytes or min(usual, MOST_BURST)

    @property
    def most_packets(self) -> int:
        """The burst in frames."""
        return self.burst_packets or max(self.pps // _BURSTS_PER_SECOND, 1)

    def __str__(self) -> str:
        """Return the text that `parse_rate_limit` takes."""
        given = [f"{name}={value}" for name, value in dataclasses.asdict(self).items() if value]
        return ",".join(given) or NONE


NO_LIMIT: Final = RateLimit()


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits of an adapter; None, in a request: as before.

    Attributes:
        transmit: Of frames that the guest sends.
        receive: Of frames that the guest gets.
    """

    transmit: RateLimit | None = None
    receive: RateLimit | None = None


_BOUNDS: Final = {
    "bps": (LEAST_BPS, MOST_BPS),
    "pps": (1, MOST_PPS),
    "burst_bytes": (1, MOST_BURST),
    "burst_packets": (1, MOST_BURST),
}
_RATE_OF: Final = {"burst_bytes": "bps", "burst_packets": "pps"}


def checked(limit: RateLimit) -> RateLimit:
    """Return a limit that is within the bounds.

    Raises:
        InvalidArgumentError: RATE_LIMIT_VALUE.
    """
    values = dataclasses.asdict(limit)
    for name, (least, most) in _BOUNDS.items():
        if values[name] and not least <= values[name] <= most:
            zero = "the default" if name in _RATE_OF else "none"
            said = f"{name}={values[name]}"
            raise _refusal(said, name, f"must be {least} to {most}, or 0 for {zero}")
    for burst, rate in _RATE_OF.items():
        if values[burst] and not values[rate]:
            said = f"{burst}={values[burst]}"
            raise _refusal(said, burst, f"limits nothing without {rate}; give that, too")
    return limit


def parse_rate_limit(text: str) -> RateLimit:
    """Parse `bps=N,pps=N,burst_bytes=N,burst_packets=N`, some of these, or `none`.

    Raises:
        InvalidArgumentError: RATE_LIMIT_VALUE.
    """
    values: dict[str, int] = {}
    for item in text.split(",") if text != NONE else ():
        name, _, value = item.partition("=")
        if name not in _BOUNDS:
            names = ", ".join(f"{each}=N" for each in _BOUNDS)
            raise _refusal(item, name, f"is not known; write some of {names}, or {NONE}")
        if name in values:
            raise _refusal(item, name, f"gives {name} twice; give it once")
        if not _NUMBER.fullmatch(value):
            raise _refusal(item, name, f"must have a number up to {_BOUNDS[name][1]}")
        values[name] = int(value)
    return checked(RateLimit(**values))


def _refusal(item: str, name: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "RATE_LIMIT_VALUE", f"rate limit {item!r} {why}", field=name, value=item
    )

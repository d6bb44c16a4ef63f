"""Many devices in one device host: rates with one or all of them busy, and the cost of an idle one.

Owns the hosts and the idle front-ends. Must not know goals or how figures are reported.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from bench import front_end, trees
from bench.cases import Case
from bench.results import ScaleRow
from bench.targets import Place, Running, start_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.rounds import Settings

ONE: Final = Case(operation="read", depth=16)
"""The work of one device while the others idle."""
ALL: Final = Case(operation="read", depth=4)
"""The work of each device when all are busy."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """A device host, and a front-end to which all of its devices but the first are attached.

    Attributes:
        running: The host.
        idle: The front-end; None when there is only one device.
        attach_ns: Time of each attachment.
    """

    running: Running
    idle: subprocess.Popen[str] | None
    attach_ns: list[int]

    def dismiss(self) -> None:
        """Detach the idle devices."""
        if self.idle is not None:
            self.idle.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()
        self.running.close()


def measure(settings: Settings, counts: Sequence[int], *, native: bool) -> Iterator[ScaleRow]:
    """Measure one host for each number of devices; every round measures all of them.

    Raises:
        FrontEndError: A device answered wrongly.
    """
    with contextlib.ExitStack() as stack:
        crowds = {
            count: stack.enter_context(_gather(settings, count, native=native)) for count in counts
        }
        rates: dict[int, list[float]] = {count: [] for count in counts}
        memory = {}
        for count, crowd in crowds.items():
            # The first request allocates memory for good, which must not count for idle devices.
            crowd.attach_ns.extend(_drive(settings, crowd, ONE, ["--ops=1"]).attach_ns)
            memory[count] = resident(crowd.running.process.pid)
        idle = {count: _idle_cpu_ms(crowd, settings.seconds) for count, crowd in crowds.items()}
        for number in range(settings.rounds):
            turn = number % len(counts)
            for count in (*counts[turn:], *counts[:turn]):
                rates[count].append(_drive(settings, crowds[count], ONE).rate)
        for count, crowd in crowds.items():
            crowd.dismiss()
            together = ["--one-thread", f"--busy={count}", *_sockets(crowd.running.sockets[1:])]
            busy = [_drive(settings, crowd, ALL, together) for _ in range(settings.rounds)]
            yield ScaleRow(
                host="native" if native else "python",
                devices=count,
                attach_ms=[round(ns / 1e6, 2) for ns in crowd.attach_ns],
                rss_bytes=memory[count][0],
                anonymous_bytes=memory[count][1],
                idle_cpu_ms=round(idle[count], 1),
                rates=[round(rate, 1) for rate in rates[count]],
                busy_rates=[round(each.rate, 1) for each in busy],
            )


def resident(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process, and its anonymous part, in bytes (proc(5))."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()

    def field(name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+) kB$", rollup, re.MULTILINE)
        return int(match[1]) << 10 if match else 0

    return field("Rss"), field("Anonymous")


def _gather(settings: Settings, count: int, *, native: bool) -> Crowd:
    place = Place(
        Path(tempfile.mkdtemp(dir=settings.run_dir)),
        settings.shared[ONE.medium],
        settings.device_cpus,
    )
    running = start_host(place, [front_end.POOL] * count, native=native)
    if count == 1:
        return Crowd(running, None, [])
    command = [
        str(front_end.PROGRAM),
        "--operation=attach",
        f"--pool-mib={front_end.POOL_BYTES >> 20}",
        *_sockets(running.sockets[1:]),
    ]
    idle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = idle.stdout.readline() if idle.stdout else ""
    if not said:
        running.close()
        raise front_end.FrontEndError(f"{count - 1} devices could not be attached")
    return Crowd(running, idle, json.loads(said)["attach_ns"])


def _sockets(paths: Sequence[str]) -> list[str]:
    return [f"--socket={path}" for path in paths]


def _drive(
    settings: Settings, crowd: Crowd, case: Case, more: Sequence[str] = ()
) -> front_end.Measurement:
    given = front_end.arguments(
        case, seconds=settings.seconds, warmup_s=settings.warmup_s, seed=trees.SEED
    )
    return front_end.run(
        [*given, *_sockets(crowd.running.sockets[:1]), f"--file={trees.READ_FILE}", *more],
        settings.driver_cpus,
    )


def _idle_cpu_ms(crowd: Crowd, seconds: float) -> float:
    """Return the CPU time of the host's threads in milliseconds per second (proc(5), schedstat)."""
    tasks = Path(f"/proc/{crowd.running.process.pid}/task")

    def used_ns() -> int:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())

    before, begin = used_ns(), time.monotonic()
    time.sleep(seconds)  # the measurement itself: the CPU time of an idle host
    return (used_ns() - before) / 1e6 / (time.monotonic() - begin)

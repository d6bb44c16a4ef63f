"""Runs cases in rounds: each round measures every target once, and each begins with another target.

The two measurements of a pair are therefore only seconds apart. Owns the order. Must not know how
figures are reported.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import front_end, trees
from bench.cases import Kind
from bench.results import CaseResult, summarize
from bench.targets import Place, Running, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.cases import Case, Medium
    from bench.front_end import Measurement

AGAIN: Final = " again"
"""Suffix of a target's name in its second measurement of a round, which shows the noise."""
FLOORS: Final = {"read": "floor: pread", "write": "floor: pwrite"}
MEMCPY: Final = "floor: memcpy"
LISTED: Final = 20_000
"""Directory entries that a measurement of READDIRPLUS lists; at least one whole directory."""
CASE_S: Final = 18.0
"""Seconds after which a case gets no further round, once it has had LEAST_ROUNDS."""
LEAST_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """How cases are run.

    Attributes:
        seconds: Length of each measurement.
        warmup_s: Time before each measurement that does not count.
        rounds: Rounds of each case; fewer when they take too long (CASE_S).
        run_dir: Directory for sockets.
        shared: The shared directory on each medium.
        driver_cpus: CPUs that the front-end may use; empty: all.
        device_cpus: CPUs that devices may use; empty: all.
        ops: Number of operations after which a measurement ends; 0: it ends after `seconds`.
    """

    seconds: float
    warmup_s: float
    rounds: int
    run_dir: Path
    shared: Mapping[Medium, Path]
    driver_cpus: tuple[int, ...] = ()
    device_cpus: tuple[int, ...] = ()
    ops: int = 0


class Runner:
    """Runs one case after another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seeds = itertools.count(trees.SEED + 1)

    def run(self, case: Case, targets: Sequence[Target], twice: Target | None) -> CaseResult:
        """Run all rounds of a case.

        Args:
            case: The case.
            targets: The programs that are measured.
            twice: The one of them that is measured a second time in each round; None: none is.

        Raises:
            FrontEndError: A device answered wrongly.
        """
        order: list[tuple[str, Target | None]] = [(target.name, target) for target in targets]
        if twice is not None:
            order.append((twice.name + AGAIN, twice))
        order += [(name, None) for name in _floors(case)]
        found: dict[str, list[Measurement]] = {name: [] for name, _ in order}
        with contextlib.ExitStack() as stack:
            running = {
                target.name: stack.enter_context(self.start(target, case))
                for target in targets
                if target.serves_again
            }
            end = time.monotonic() + CASE_S
            for number in range(self._settings.rounds):
                if number >= LEAST_ROUNDS and time.monotonic() > end:
                    break
                turn = number % len(order)
                for name, target in order[turn:] + order[:turn]:
                    found[name].append(self._measure(case, name, target, running))
        return CaseResult(case=case, rows=[summarize(name, found[name]) for name in found])

    def _measure(
        self, case: Case, name: str, target: Target | None, running: Mapping[str, Running]
    ) -> Measurement:
        if target is None:
            return self._run_floor(case, memory=name == MEMCPY)
        if target.name in running:
            return self.drive(case, target, running[target.name])
        with self.start(target, case) as started:
            return self.drive(case, target, started)

    def start(self, target: Target, case: Case) -> Running:
        """Start a target for a case, and make the files that the case needs."""
        settings = self._settings
        if not case.moves_data and case.operation != "create":
            trees.make_directory(settings.shared[case.medium], case.files)
        # A folder per process: two processes must not replace each other's sockets.
        run_dir = Path(tempfile.mkdtemp(dir=settings.run_dir))
        place = Place(run_dir, settings.shared[case.medium], settings.device_cpus)
        return target.start(place, min(case.queues, target.max_queues))

    def drive(
        self, case: Case, target: Target, running: Running, under: Sequence[str] = ()
    ) -> Measurement:
        """Measure a case once on a running target; see front_end.run for `under`.

        Raises:
            FrontEndError: The device answered wrongly.
        """
        queues = min(case.queues, target.max_queues)
        # A device with fewer queues gets as many requests in flight, spread over its queues.
        depth = case.depth * case.queues // queues
        arguments = [
            *self._arguments(case),
            f"--socket={running.sockets[0]}",
            f"--pid={running.process.pid}",
            f"--queues={queues}",
            f"--depth={depth}",
            f"--file={trees.WRITE_FILE if case.operation == 'write' else trees.READ_FILE}",
        ]
        return front_end.run(arguments, self._settings.driver_cpus, under)

    def _arguments(self, case: Case) -> list[str]:
        settings = self._settings
        # Each run writes other data than the one before, so that a lost write is noticed.
        seed = next(self._seeds) if case.operation in ("write", "create") else trees.SEED
        directory = trees.SCRATCH if case.operation == "create" else trees.directory_of(case.files)
        # Listings are limited by number, because a single one may outlast the measured time.
        listings = max(1, LISTED // case.files) if case.operation == "list" else 0
        ops = settings.ops or listings
        return [
            *([f"--ops={ops}"] if ops else []),
            *front_end.arguments(
                case,
                seconds=settings.seconds,
                # Uncached buffers are many: the warm-up must use each once and fault it in.
                warmup_s=settings.warmup_s * (10 if case.span_bytes else 1),
                seed=seed,
            ),
            f"--directory={directory}",
            f"--files={case.files}",
        ]

    def _run_floor(self, case: Case, *, memory: bool) -> Measurement:
        file = trees.WRITE_FILE if case.operation == "write" else trees.READ_FILE
        arguments = [
            *self._arguments(case),
            f"--file={self._settings.shared[case.medium] / file}",
            f"--target={'memory' if memory else 'file'}",
        ]
        return front_end.run(arguments, self._settings.driver_cpus)


def _floors(case: Case) -> list[str]:
    if not case.moves_data or case.kind not in (Kind.SMALL, Kind.LARGE):
        return []
    memory = case.operation == "read" and case.kind is Kind.LARGE
    return [FLOORS[case.operation], *([MEMCPY] if memory else [])]

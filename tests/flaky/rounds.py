"""One run of the tests, in an order that a seed decides, and its result.

Owns the call of pytest and pytest's output. Must not know the load, or other rounds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Sequence

BUILD: Final = Path("build/flaky")
STUCK_S: Final = 900
"""Seconds after which pytest writes the stacks of a running test to the log."""

_ENDED: Final = {0, 1, 5}
"""pytest's exit codes of a run that ended by itself: all passed, some failed, none chosen."""


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one run.

    Attributes:
        seed: The seed that repeats it.
        failed: The tests that failed, and the run itself if it did not end by itself.
        ran: Number of tests that ran.
        skipped: Number of tests that were skipped.
        seconds: Its duration.
        log: File with pytest's output.
    """

    seed: int
    failed: frozenset[str]
    ran: int
    skipped: int
    seconds: float
    log: Path


def run_round(seed: int, chosen: Sequence[str], deadline_s: float, folder: Path = BUILD) -> Round:
    """Run tests once, in an order and with random numbers that the seed decides.

    Args:
        seed: Seed of the order, of hypothesis, and of the conformance tests' random calls.
        chosen: Arguments for pytest that choose tests.
        deadline_s: Seconds after which the run is ended.
        folder: Folder for the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, results = folder / f"{seed}.log", folder / f"{seed}.xml"
    results.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"),
                *("--random-order-bucket=module", f"--random-order-seed={seed}"),
                f"--hypothesis-seed={seed}",
                *("-o", f"faulthandler_timeout={STUCK_S}", "-o", "junit_family=xunit1"),
                *(f"--junit-xml={results}", *chosen),
            ],
            env={**os.environ, "PORTHOLE_SEED": str(seed)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    cases = read_cases(results) if results.exists() else {}
    failed = {name for name, outcome in cases.items() if outcome == "failed"}
    if code not in _ENDED:
        how = f"ended with {code}" if code is not None else f"did not end in {deadline_s:g} s"
        failed.add(f"(the run {how}: {_last_line(log)})")
    skipped = sum(outcome == "skipped" for outcome in cases.values())
    return Round(
        seed, frozenset(failed), len(cases) - skipped, skipped, time.monotonic() - began, log
    )


def read_cases(results: Path) -> dict[str, str]:
    """Read pytest's JUnit file: for each test "passed", "failed" or "skipped"."""
    cases: dict[str, str] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('file')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"} or cases.get(name) == "failed":
            cases[name] = "failed"
        else:
            cases[name] = "skipped" if "skipped" in kinds else "passed"
    return cases


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "nothing was written")

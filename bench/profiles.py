"""Profiles a device while a case runs: samples it by perf(1), or by py-spy.

perf sees the kernel, C and Rust, but only the interpreter of a Python program; py-spy samples that,
where it is installed. Owns the command lines of both. Must not know goals.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.results import Profile, Symbol

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.cases import Case
    from bench.rounds import Runner
    from bench.targets import Target

PERF: Final = "perf"
PY_SPY: Final = "py-spy"
SAMPLES_PER_S: Final = 1999
SHOWN: Final = 14
"""Most symbols of one profile."""


def is_possible() -> bool:
    """Return whether perf is installed and may be used."""
    if shutil.which(PERF) is None:
        return False
    with tempfile.NamedTemporaryFile() as data:
        tried = [PERF, "record", "-e", "cpu-clock", "-o", data.name, "true"]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def record(runner: Runner, case: Case, target: Target, *, python: bool) -> Profile:
    """Run a case once and sample its device.

    Args:
        runner: Runs the case.
        case: The case.
        target: The device to sample.
        python: Whether to sample Python functions.

    Raises:
        FrontEndError: The device answered wrongly.
        CalledProcessError: The sampler failed.
    """
    spy = python and shutil.which(PY_SPY) is not None
    with tempfile.TemporaryDirectory() as folder, runner.start(target, case) as running:
        data = Path(folder) / "samples"
        pid = str(running.process.pid)
        if target.serves_again:
            runner.drive(case, target, running)  # first, so that start-up is not sampled
        if spy:
            _spy(pid, data, lambda: runner.drive(case, target, running))
        else:
            runner.drive(case, target, running, _perf(pid, data))
        symbols = parse_stacks(data.read_text()) if spy else parse_report(_report(data))
    return Profile(case=case.name, program=target.name, symbols=symbols[:SHOWN])


def _perf(pid: str, data: Path) -> list[str]:
    # With a command, perf samples the process until the command ends.
    rate = ["-F", str(SAMPLES_PER_S)]
    return [PERF, "record", "-q", "-e", "cpu-clock", *rate, "-p", pid, "-o", str(data), "--"]


def _spy(pid: str, data: Path, drive: Callable[[], object]) -> None:
    rate = ["--rate", "500", "--duration", "3600"]
    sampler = subprocess.Popen(
        [PY_SPY, "record", "--format", "raw", "--function", *rate, "-p", pid, "-o", str(data)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        drive()
    finally:
        sampler.send_signal(signal.SIGINT)
        sampler.wait()


def _report(data: Path) -> str:
    done = subprocess.run(
        [PERF, "report", "-i", str(data), "--stdio", "-F", "overhead,dso,symbol", "-t", "|"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PERF_PAGER": "cat"},
    )
    return done.stdout


def parse_stacks(stacks: str) -> list[Symbol]:
    """Read lines "outer (file);inner (file) 12" of py-spy; the innermost function counts."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and count.isdigit():
            counts[stack.rpartition(";")[2]] += int(count)
    total = counts.total()
    return [
        Symbol(
            share=round(100 * count / total, 2),
            module=place.partition(" (")[2].rstrip(")") or "?",
            name=place.partition(" (")[0],
        )
        for place, count in counts.most_common()
    ]


def parse_report(report: str) -> list[Symbol]:
    """Read lines "  12.34%|module  |[k] symbol"; others are comments."""
    symbols = []
    for line in report.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 3 and parts[0].endswith("%"):
            name = parts[2].partition("] ")[2] or parts[2]
            symbols.append(Symbol(share=float(parts[0][:-1]), module=parts[1], name=name))
    return symbols

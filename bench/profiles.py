"""Where CPU time goes in a case that fell short: a sample of the device, by perf(1).

Owns the perf command lines. Must not know goals.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import trees
from bench.results import Profile, Symbol

if TYPE_CHECKING:
    from bench.cases import Case
    from bench.rounds import Runner
    from bench.targets import Target

PERF: Final = "perf"
SAMPLES_PER_S: Final = 1999
SHOWN: Final = 14
"""Symbols of a profile."""


def is_possible() -> bool:
    """Tell whether perf is installed and may be used."""
    if shutil.which(PERF) is None:
        return False
    with tempfile.NamedTemporaryFile() as data:
        tried = [PERF, "record", "-e", "cpu-clock", "-o", data.name, "true"]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def record(runner: Runner, case: Case, target: Target) -> Profile:
    """Run a case once and sample its device.

    Raises:
        FrontEndError: The device answered wrongly.
        CalledProcessError: perf failed.
    """
    if not case.moves_data and case.operation != "create":
        trees.make_directory(runner.shared(case), case.files)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        with runner.start(target, case) as running:
            runner.drive(case, target, running) if target.serves_again else None
            perf = subprocess.Popen(
                [
                    *(PERF, "record", "-e", "cpu-clock", "-F", str(SAMPLES_PER_S)),
                    *("-p", str(running.process.pid), "-o", str(data)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                runner.drive(case, target, running)
            finally:
                perf.send_signal(signal.SIGINT)
                perf.wait()
        report = subprocess.run(
            [PERF, "report", "-i", str(data), "--stdio", "-F", "overhead,dso,symbol", "-t", "|"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PERF_PAGER": "cat"},
        )
    return Profile(case=case.name, program=target.name, symbols=parse(report.stdout)[:SHOWN])


def parse(report: str) -> list[Symbol]:
    """Read lines "  12.34%|module  |[k] symbol"; others are comments."""
    symbols = []
    for line in report.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 3 and parts[0].endswith("%"):
            name = parts[2].partition("] ")[2] or parts[2]
            symbols.append(Symbol(share=float(parts[0][:-1]), module=parts[1], name=name))
    return symbols

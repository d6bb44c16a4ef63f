"""A walk over many files: the time, memory and descriptors that each program takes for it.

A guest looks up every file, and then asks for the attributes of every one again, which a program
may have closed meanwhile. Some programs also run as an ordinary user with 1,024 descriptors, for
whom the kernel opens no file handles. Must not know how figures are reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from bench import front_end, trees
from bench.cases import Medium
from bench.results import WalkRow
from bench.scale import resident
from bench.targets import NATIVE, PYTHON, Place, has_native, virtiofsds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rounds import Settings
    from bench.targets import Target

ORDINARY: Final = ", ordinary user"
"""Suffix of the name of a program that runs without capabilities, as an ordinary user's does."""
DESCRIPTORS: Final = 1024
_FEW: Final = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
_NO_CAPABILITIES: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


class _Times(BaseModel):
    """What the front-end prints of a walk."""

    model_config = ConfigDict(extra="forbid")

    known_s: float
    again_s: float


def measure(settings: Settings, files: int) -> Iterator[WalkRow]:
    """Walk over a directory with each program once.

    Args:
        settings: Of the run.
        files: Files in the directory.
    """
    shared = settings.shared[Medium.TMPFS]
    trees.make_directory(shared, files)
    trees.make_directory(shared, 1)
    for target in _targets():
        run_dir = Path(tempfile.mkdtemp(dir=settings.run_dir))
        place = Place(run_dir, shared, settings.device_cpus)
        first = _walk(target, place, 1)
        row = _walk(target, place, files)
        used = max(row.anonymous_bytes - first.anonymous_bytes, 0)
        yield row.model_copy(update={"anonymous_bytes": 0 if row.failure else used})


def _targets() -> Iterator[Target]:
    ours = [*([NATIVE] if has_native() else []), PYTHON]
    for target in ours:
        yield target
        yield ordinary(target)
    yield from virtiofsds()


def ordinary(target: Target) -> Target:
    """Have a program run with few descriptors and, like an ordinary user's, no capabilities."""
    without = _NO_CAPABILITIES if os.geteuid() == 0 else ()
    return replace(target, name=target.name + ORDINARY, command=(*_FEW, *without, *target.command))


def _walk(target: Target, place: Place, files: int) -> WalkRow:
    """Walk once; what fails is part of the result."""
    with target.start(place) as running:
        pid = running.process.pid
        guest = subprocess.Popen(
            [
                *(str(front_end.PROGRAM), "--operation=walk", f"--files={files}"),
                *(f"--directory={trees.directory_of(files)}", f"--socket={running.sockets[0]}"),
                f"--pool-mib={front_end.POOL_BYTES >> 20}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = guest.stdout.readline() if guest.stdout else ""
        if not said:
            _, failure = guest.communicate()
            why = failure.strip().removeprefix(f"front_end: {running.sockets[0]}: ")
            return WalkRow(name=target.name, files=files, failure=why)
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        _, anonymous = resident(pid)
        guest.communicate()
    times = _Times.model_validate(json.loads(said))
    return WalkRow(
        name=target.name,
        files=files,
        known_s=times.known_s,
        again_s=times.again_s,
        anonymous_bytes=anonymous,
        descriptors=descriptors,
    )

"""The machine that figures were measured on: its description, its load, and a run's priority on it.

Must not know what is measured.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator

NICENESS: Final = -10
"""Another process then takes about a tenth of a CPU that it shares with the run, and still runs."""

_AUTOGROUP: Final = Path("/proc/self/autogroup")


class Machine(BaseModel):
    """The properties of the machine that figures depend on.

    Attributes:
        date: When the run began, in UTC.
        cpu: The model of the CPU.
        cpus: Number of CPUs that this process may use.
        memory_bytes: All memory of the machine.
        kernel: Release and architecture.
        hypervisor: Whether the CPU reports that it belongs to a virtual machine.
        load: Load average of the minute before the run, all of it caused by other processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    cpu: str
    cpus: int
    memory_bytes: int
    kernel: str
    hypervisor: bool
    load: float


class Busyness(BaseModel):
    """The load by others during a run, as fractions of all CPU time of the machine.

    Attributes:
        others: CPU time of other processes on this machine.
        stolen: CPU time that the hypervisor gave to other guests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    others: float
    stolen: float


class Watch:
    """Measures the load by others, starting when it is constructed."""

    def __init__(self) -> None:
        self._before = _ticks()

    def read(self) -> Busyness:
        """Return the load so far; a child process counts as ours only once it has ended."""
        total, busy, stolen, own = (
            after - before for after, before in zip(_ticks(), self._before, strict=True)
        )
        if not total:
            return Busyness(others=0.0, stolen=0.0)
        return Busyness(others=max(0.0, busy - own) / total, stolen=stolen / total)


def _ticks() -> tuple[float, float, float, float]:
    """Return total, busy and stolen CPU time (proc(5), stat), and that of this process."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, idle, iowait, irq, softirq, stolen = map(int, words)
    busy = user + nice + system + irq + softirq
    own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
    return busy + idle + iowait + stolen, busy, stolen, own


def describe() -> Machine:
    """Describe this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        cpu=model[1] if model else platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.release()} {platform.machine()}",
        hypervisor=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        load=os.getloadavg()[0],
    )


@contextlib.contextmanager
def precedence() -> Iterator[bool]:
    """Raise this process's priority; yields whether it was allowed to.

    With autogroups, niceness counts within a session only, so the session's is set as well.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    group = re.search(r"nice (-?\d+)", _AUTOGROUP.read_text()) if _AUTOGROUP.exists() else None
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        if group is not None:
            _AUTOGROUP.write_text(str(NICENESS))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
        if group is not None:
            _AUTOGROUP.write_text(group[1])

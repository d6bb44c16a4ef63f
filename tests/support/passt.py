"""The passt that `make passt` builds, and those that run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

PASST: Final = Path(__file__).parents[2] / "build/passt/passt"


def copy_passt(to: Path) -> Path:
    """Copy passt and pesto to a directory where every user may run them."""
    for name in ("passt", "pesto", "passt.avx2"):
        if (PASST.parent / name).exists():
            shutil.copy(PASST.parent / name, to)
    return to / "passt"


def passt_processes(parent: int | None = None) -> list[int]:
    """Return the ids of all passt that a process has started; None: this process."""
    parent = os.getpid() if parent is None else parent
    found = []
    for entry in Path("/proc").iterdir():
        try:
            # proc(5): pid (comm) state ppid …
            comm, rest = entry.joinpath("stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except (OSError, IndexError):  # no process, or none any more
            continue
        if comm.startswith("passt") and int(rest.split()[1]) == parent:
            found.append(int(entry.name))
    return found

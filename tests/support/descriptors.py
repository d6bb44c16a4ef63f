"""The descriptors that this process has open.

What other tests left behind may be closed at any time: garbage is collected before all descriptors
are counted, and who can say where its own lead counts those.
"""

from __future__ import annotations

import gc
from pathlib import Path


def open_fds() -> int:
    """Return how many there are."""
    gc.collect()  # the traceback of a failed assertion keeps some
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def open_descriptors(under: Path) -> list[str]:
    """Return the paths of those that lead into a directory."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(f"{under}/"):
            found.append(target)
    return found

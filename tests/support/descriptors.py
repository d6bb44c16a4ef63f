"""The descriptors that this process has open.

Descriptors in the garbage of other tests may be closed at any time. So `open_fds` collects garbage
before it counts; a test that knows the directory of its own files counts only those.
"""

from __future__ import annotations

import gc
from pathlib import Path

from services.devicehost.memory.loss import survives_lost_pages


def open_fds() -> int:
    """Return the number of open descriptors."""
    survives_lost_pages()  # the first mapping of guest memory opens one, for good
    gc.collect()  # the traceback of a failed assertion keeps some open
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def open_descriptors(under: Path) -> list[str]:
    """Return the paths of the open descriptors that lead into a directory."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(f"{under}/"):
            found.append(target)
    return found

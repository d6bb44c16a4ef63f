"""Directories of tests, which never go through what a test has left mounted there."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.rpc.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def directory(under: str | Path = "/tmp") -> Iterator[Path]:
    """A directory that is removed after the body; nothing may be mounted in it then."""
    path = Path(tempfile.mkdtemp(prefix="ph-", dir=under))
    try:
        yield path
    finally:
        left = remove_tree(path)
        assert not mounts_below(path), f"what made these has not ended: {left}"


def mounts_below(path: Path) -> list[Path]:
    """Return the mount points below a directory, in the order in which they were mounted."""
    places = [
        # proc(5), mountinfo: the fifth field is the mount point, with octal escapes.
        Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [place for place in places if place.is_relative_to(path.resolve())]

"""The shared directories: a file to read with a known pattern, one to write, and directories.

Owns the layout that the front-end expects. Must not know devices.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from services.handshake.pool import PAGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

READ_FILE: Final = "data.bin"
WRITE_FILE: Final = "written.bin"
SCRATCH: Final = "scratch"
SEED: Final = 1
"""Seed of the pattern in READ_FILE."""

_MASK: Final = (1 << 64) - 1
_WORDS: Final = PAGE_BYTES // 8


def page_stamp(seed: int, page: int) -> int:
    """Return the number that identifies a page; pattern.c of the front-end computes the same."""
    z = (seed * 0x9E3779B97F4A7C15 + page + 1) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def directory_of(files: int) -> str:
    """Return the name of the directory with this number of files."""
    return f"files-{files}"


def make_tree(root: Path, size_bytes: int) -> None:
    """Make the files, and an empty directory for CREATE; existing ones stay.

    Args:
        root: The shared directory.
        size_bytes: Size of each file, a multiple of the page size.
    """
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    data = root / READ_FILE
    if not data.exists() or data.stat().st_size != size_bytes:
        with data.open("wb") as file:
            for page in range(size_bytes // PAGE_BYTES):
                stamp = page_stamp(SEED, page)
                words = (stamp + word & _MASK for word in range(_WORDS))
                file.write(struct.pack(f"<{_WORDS}Q", *words))
    written = root / WRITE_FILE
    if not written.exists() or written.stat().st_size != size_bytes:
        # The file is written, not truncated to size: writing into a hole would measure allocation.
        with written.open("wb") as file:
            for _ in range(size_bytes // PAGE_BYTES):
                file.write(bytes(PAGE_BYTES))


def make_directory(root: Path, files: int) -> None:
    """Make the directory with this number of files; file i has i bytes, which identifies it."""
    directory = root / directory_of(files)
    if directory.exists():
        return
    making = root / f"{directory.name}.part"
    making.mkdir(exist_ok=True)
    for number in range(files):
        with (making / f"f{number:06}").open("wb") as file:
            file.truncate(number)
    making.rename(directory)

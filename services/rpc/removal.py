"""Removing a directory with all that is in it, but nothing of what is mounted there.

Owns that walk. `shutil.rmtree` goes through mount points: below a share that is mounted it removes
the files of the shared directory, on the host. Must not know what the directories are for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_LOOK: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""A look that asks no file system for anything, so that a mount which is dead cannot hold it up."""
_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def remove_tree(directory: Path) -> dict[Path, str]:
    """Remove a directory and what is in it, as far as that is possible.

    Symbolic links are removed and not followed. A mount point is left, with all that is mounted
    there and the directories above it, also when it is mounted while this runs.

    Args:
        directory: Nothing is done when it does not exist.

    Returns:
        What was left, and why; without the directories that are only not empty because of it.
    """
    left: dict[Path, str] = {}
    try:
        above = os.open(directory.parent, _READ)
    except FileNotFoundError:
        return left
    try:
        _Walk(_mount_of(above), left).remove(above, directory.name, directory)
    finally:
        os.close(above)
    return left


class _Walk:
    """One removal, which stays within one mount."""

    def __init__(self, mount: bytes, left: dict[Path, str]) -> None:
        self._mount = mount
        self._left = left

    def remove(self, above: int, name: str, path: Path) -> bool:
        """Remove the entry `name` of an open directory; return whether it is gone."""
        try:
            try:
                looked = os.open(name, _LOOK, dir_fd=above)
            except NotADirectoryError:  # a symbolic link is none either
                os.unlink(name, dir_fd=above)
                return True
            if self._is_emptied(looked, path):
                os.rmdir(name, dir_fd=above)
                return True
        except FileNotFoundError:
            return True
        except OSError as error:
            self._left[path] = os.strerror(error.errno or 0)
        return False

    def _is_emptied(self, looked: int, path: Path) -> bool:
        """Remove what is in a directory, and close it; return whether it is empty now."""
        try:
            if _mount_of(looked) != self._mount:
                self._left[path] = "something is mounted there"
                return False
            reading = os.open(".", _READ, dir_fd=looked)
        finally:
            os.close(looked)
        try:
            with os.scandir(reading) as entries:
                names = [entry.name for entry in entries]
            gone = [self.remove(reading, each, path / each) for each in names]
            return all(gone)
        finally:
            os.close(reading)


def _mount_of(fd: int) -> bytes:
    """Return the id of the mount that an open file was reached by (proc(5), fdinfo)."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_bytes().splitlines():
        if line.startswith(b"mnt_id:"):
            return line
    raise OSError(f"/proc/self/fdinfo/{fd} names no mount")

"""Programs of ours, run by an ordinary user of this machine, and a checkout that is theirs.

The interpreter of the tests may be below a directory that only root may enter. So the program gets
a mount namespace of its own, in which that directory has nothing but the interpreter.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Final

from services.vm_owner.machines.qemu.image import INITRAMFS, KERNEL

A_USER: Final = 65533
"""A user whom this machine does not know."""

_PROGRAM: Final = """
set -e
if [ -n "$1" ]; then
    place=$(mktemp -d)
    mount --bind "$1/$2" "$place"
    mount -t tmpfs -o mode=755 none "$1"
    mkdir "$1/$2"
    mount --move "$place" "$1/$2"
    rmdir "$place"
fi
shift 2
exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups --no-new-privs "$@"
"""


_TUN_FOR_ALL: Final = """
set -e
mount -t tmpfs none /dev/net
mknod -m 666 /dev/net/tun c 10 200
exec "$@"
"""


def as_ordinary_user(program: list[str]) -> list[str]:
    """Return the command line that runs a program as an ordinary user, who this may be already."""
    if os.geteuid() != 0:
        return program
    closed, entry = _closed_directory(Path(os.path.realpath(sys.executable)))
    script = _PROGRAM.replace('"$USER_ID"', str(A_USER))
    unshare = ["unshare", "--mount", "--propagation", "private"]
    return [*unshare, "sh", "-c", script, "sh", closed, entry, *program]


def with_tun_for_all(program: list[str]) -> list[str]:
    """Return the command line that runs a program where every user may make TAPs, as usual."""
    if os.geteuid() != 0 or Path("/dev/net/tun").stat().st_mode & stat.S_IWOTH:
        return program
    unshare = ["unshare", "--mount", "--propagation", "private"]
    return [*unshare, "sh", "-c", _TUN_FOR_ALL, "sh", *program]


def copy_checkout(to: Path) -> Path:
    """Copy what a checkout has after `make setup kernel guest-image`, for an ordinary user."""
    ours = Path(__file__).parents[2]
    without = shutil.ignore_patterns("__pycache__")
    for name in ("services", "clients/python"):
        shutil.copytree(ours / name, to / name, ignore=without)
    for file in (KERNEL, INITRAMFS):
        copy = to / file.relative_to(ours)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    if os.geteuid() == 0:
        for path in (to, *to.rglob("*")):
            os.chown(path, A_USER, A_USER)
    return to


def _closed_directory(path: Path) -> tuple[str, str]:
    """Return the outermost directory above a path that others may not enter, and what is needed."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return str(parent), path.relative_to(parent).parts[0]
    return "", ""

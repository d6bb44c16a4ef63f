"""The run directory: where it is by default, and that it is its user's alone.

Owns the check. Sockets in this directory are trusted by their names, so whoever can write into it
can be taken for any service. Must not know which services there are.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from services.handshake.errors import FailedPreconditionError

MODE: Final = 0o700
"""Mode of a run directory that is made here; one that exists may have no permission beyond it."""

_OF_OTHERS: Final = 0o077
_WRITABLE_BY_OTHERS: Final = 0o022


def default_run_dir() -> Path:
    """Return $XDG_RUNTIME_DIR/porthole, or <temporary directory>/porthole-<uid> without it."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    if runtime_dir:
        return Path(runtime_dir) / "porthole"
    return Path(tempfile.gettempdir()) / f"porthole-{os.geteuid()}"


def claim(path: Path) -> None:
    """Make the run directory for a service, or check the one that exists.

    Raises:
        FailedPreconditionError: RUN_DIR_UNSAFE; nothing has been written to it.
        OSError: It cannot be made.
    """
    try:
        path.mkdir(mode=MODE, parents=True, exist_ok=True)
    except FileExistsError:
        raise _unsafe(path, "it is not a directory; move it away") from None
    _check(path)


def guard(path: Path) -> None:
    """Check the run directory for a client, which is about to look for a service in it.

    One that does not exist is made where another user could make it while the client waits.

    Raises:
        FailedPreconditionError: RUN_DIR_UNSAFE; nobody has been connected to.
    """
    try:
        parent = path.parent.stat()
        if parent.st_mode & _WRITABLE_BY_OTHERS:
            path.mkdir(mode=MODE, exist_ok=True)
        _check(path)
    except FileExistsError:
        raise _unsafe(path, "it is not a directory; move it away") from None
    except OSError:  # there is no service either; the client says so
        return


def _check(path: Path) -> None:
    link, directory = path.lstat(), path.stat()
    ours = os.geteuid()
    if link.st_uid not in (0, ours) or directory.st_uid != ours:
        other = link.st_uid if link.st_uid not in (0, ours) else directory.st_uid
        raise _unsafe(
            path,
            f"it belongs to user {other}, not to {ours}, who runs this; remove it, or choose "
            "another with --run-dir or PORTHOLE_RUN_DIR",
        )
    if not stat.S_ISDIR(directory.st_mode):
        raise _unsafe(path, "it is not a directory; move it away")
    mode = stat.S_IMODE(directory.st_mode)
    if mode & _OF_OTHERS:
        raise _unsafe(
            path,
            f"its mode is {mode:04o}, and may be {MODE:04o} at most, so that no other user can put "
            f"a socket there; see what is in it, then `chmod {MODE:o} {path}`, or choose another "
            "with --run-dir or PORTHOLE_RUN_DIR",
        )


def _unsafe(path: Path, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "RUN_DIR_UNSAFE", f"the run directory {path} is not used: {why}", run_dir=str(path)
    )

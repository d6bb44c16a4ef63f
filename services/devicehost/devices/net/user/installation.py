"""The passt of this machine: where it is, and what it can do.

Owns running it for its list of options, once for each program. Must not know a network.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.handshake.errors import FailedPreconditionError

PROGRAM: Final = "passt"
PACKAGE: Final = "passt"
"""Of Debian and its kind."""
NEEDED: Final = f"install Debian's package {PACKAGE}, that of Debian 13 (2025) or later"
"""Which one has NEEDED_OPTIONS."""
PORTS_NEED: Final = f"{PACKAGE} of 2026, in trixie-backports or later"
"""Whose ports change at run time."""

NEEDED_OPTIONS: Final = ("--fd", "--map-host-loopback", "--dns-host", "--no-map-gw", "--pid")
_CONTROL_OPTION: Final = "--conf-path"
_PORTS_PROGRAM: Final = "pesto"
_PROBE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Installation:
    """One passt.

    Attributes:
        passt: Its absolute path.
        pesto: The program that changes its ports at run time; None: this passt cannot.
    """

    passt: str
    pesto: str | None


def find(program: str) -> Installation:
    """Find passt, and see what it can do.

    Args:
        program: A path, or a name that is looked for on PATH.

    Raises:
        FailedPreconditionError: PASST_MISSING or PASST_TOO_OLD; it names the package.
    """
    found = shutil.which(program)
    if found is None:
        raise FailedPreconditionError(
            "PASST_MISSING",
            f"{program} was not found: {NEEDED} (to map ports, {PORTS_NEED}), or say where it is: "
            "--passt, PORTHOLE_PASST",
            program=program,
        )
    path = Path(found).absolute()  # not resolved: passt has modes by its name
    status = path.stat()
    return _probe(str(path), status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _probe(path: str, _changed_ns: int, _inode: int) -> Installation:
    offered = _output(path, "--help")
    lacking = [option for option in NEEDED_OPTIONS if option not in offered]
    if lacking:
        raise FailedPreconditionError(
            "PASST_TOO_OLD",
            f"{path} has no {', '.join(lacking)}: {NEEDED} (to map ports, {PORTS_NEED})",
            program=path,
        )
    beside = Path(path).with_name(_PORTS_PROGRAM)
    pesto = shutil.which(str(beside)) or shutil.which(_PORTS_PROGRAM)
    return Installation(path, pesto if _CONTROL_OPTION in offered else None)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPreconditionError(
            "PASST_FAILED", f"{command[0]} cannot be run: {error}", program=command[0]
        ) from error
    return done.stdout + done.stderr

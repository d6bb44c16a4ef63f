"""Removes what VMs have on the host when their owner is killed: their TAPs, and their directories.

Nothing of a killed process runs, so this is a process of its own: it outlives the owner by the time
that it takes. The owner names each VM that it brings up, and takes back each that has ended in
order; the end of that input is the end of the owner. Owns both ends of it. Must not know guests,
which the kernel ends with the owner, or devices, which are their device host's.

    python -m services.vm_owner.sweeper DIRECTORY   (of the directories of VMs, named by their ids)
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.handshake.errors import PortholeError
from services.rpc.removal import remove_tree
from services.vm_owner.taps import delete_tap, tap_names

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

END_DEADLINE_S: Final = 10.0
"""How long the end of the owner waits for the end of the process, which has nothing to do then."""

ATTEMPTS: Final = 20
PAUSE_S: Final = 0.5
"""Between two attempts: a user-space guest ends in order as well, and unmounts its shares first."""

_BEGIN: Final = "+"
_END: Final = "-"


class Sweeper:
    """The owner's end.

    Args:
        directory: Where the directories of VMs are.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def begin(self, vm_id: str) -> None:
        """Name a VM, before it has anything. The first one starts the process."""
        async with self._starting:
            if self._process is None:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "services.vm_owner.sweeper", str(self._directory)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    # A signal for the owner, or for all of its terminal, is none for this.
                    start_new_session=True,
                )
        self._say(_BEGIN, vm_id)

    def end(self, vm_id: str) -> None:
        """Take back a VM, which has nothing any more."""
        self._say(_END, vm_id)

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_DEADLINE_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _say(self, what: str, vm_id: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{what}{vm_id}\n".encode())


def read_left(lines: Iterable[str]) -> list[str]:
    """Read the owner's lines to their end; return the ids of the VMs that had not ended."""
    left: dict[str, None] = {}
    for line in lines:
        what, vm_id = line[:1], line[1:].strip()
        if what == _BEGIN:
            left[vm_id] = None
        elif what == _END:
            left.pop(vm_id, None)
    return list(left)


def sweep(directory: Path, vm_id: str) -> dict[str, str]:
    """Remove what a VM has on the host; return what could not be removed, and why."""
    left: dict[str, str] = {}
    for tap in tap_names(vm_id):
        try:
            delete_tap(tap)
        except PortholeError as failure:
            left[tap] = failure.message
    try:
        left |= {str(path): why for path, why in remove_tree(directory / vm_id).items()}
    except OSError as error:
        left[str(directory)] = str(error)
    return left


def main(directory: str) -> None:
    """Wait for the end of the owner, and sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    vms = read_left(sys.stdin)
    for _ in range(ATTEMPTS):
        left = {vm_id: sweep(Path(directory), vm_id) for vm_id in vms}
        vms = [vm_id for vm_id, what in left.items() if what]
        if not vms:
            return
        time.sleep(PAUSE_S)
    for vm_id in vms:
        logger.warning("VM %s: %s", vm_id, left[vm_id])


if __name__ == "__main__":
    main(sys.argv[1])

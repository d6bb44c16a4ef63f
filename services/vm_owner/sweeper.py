"""The owner's end of the process that sweeps up after it: it says which VMs there are.

Nothing of a killed process runs, so that one is a process of its own, services.vm_owner.sweep: it
outlives the owner by the time that it takes. The owner names each VM that it brings up, and takes
back each that has ended in order; the end of that input is the end of the owner. Owns those words.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

END_DEADLINE_S: Final = 10.0
"""How long the end of the owner waits for the end of the process, which has nothing to do then."""

_BEGIN: Final = "+"
_END: Final = "-"


class Sweeper:
    """The owner's end.

    Args:
        directory: Where the directories of VMs are.
        device_hosts: Addresses of the device hosts that may have devices of them.
    """

    def __init__(self, directory: Path, device_hosts: Sequence[str]) -> None:
        self._arguments = (str(directory), *device_hosts)
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def begin(self, vm_id: str) -> None:
        """Name a VM, before it has anything. The first one starts the process."""
        async with self._starting:
            if self._process is None:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "services.vm_owner.sweep", *self._arguments),
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

"""The work of the demonstration in a Linux guest: the host's Python does it, in the host's root.

Owns the guest's root and mounts, and the programs that run there (in_guest.py). It has the methods
of services.cli.clients.WorkloadClient that the demonstration uses with any guest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from services.cli.guest_control import Ended, guest_control
from services.cli.guest_root import enter_root
from services.cli.requests import GuestCommand, GuestMount
from services.cli.views import CopyResult, FileDigest, HttpResult, PingResult, PoolUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from services.cli.guest_control import GuestClient

PROGRAM: Final = "services.cli.demo.in_guest"

PLACE: Final = "/run/demo"
"""Where shares are mounted in the guest, each below its tag; /run is the guest's own."""

WORK_DEADLINE_S: Final = 300.0

LAST_WORDS_BYTES: Final = 300
"""How much of what a program says of its failure is repeated."""


class LinuxWorkload:
    """Work in a Linux guest, from `linux_guest`.

    A failed call raises PortholeError when the guest is the cause, and ChildProcessError, with the
    last words of the program, when the program is.
    """

    def __init__(self, guest: GuestClient) -> None:
        self._guest = guest

    async def hash_tree(
        self, tag: str, path: str = "", exclude: tuple[str, ...] = ()
    ) -> AsyncIterator[tuple[bytes, FileDigest]]:
        """Have the guest read every regular file of a share, by way of its kernel's mount."""
        directory = os.path.join(PLACE, tag, path)  # noqa: PTH118 - the path is the guest's
        for file, size_bytes, sha256 in await self._run("hash", directory, *exclude):
            yield bytes.fromhex(file), FileDigest(size_bytes, sha256)

    async def copy_tree(
        self, source_tag: str, target_tag: str, exclude: tuple[str, ...] = ()
    ) -> CopyResult:
        """Have the guest copy the whole of one share into another."""
        places = (f"{PLACE}/{source_tag}", f"{PLACE}/{target_tag}")
        [counts] = await self._run("copy", *places, *exclude)
        return CopyResult(*counts)

    async def ping(self, address: str, count: int, timeout_s: float) -> PingResult:
        """Send ICMP echo requests by way of the guest's kernel."""
        [result] = await self._run("ping", address, str(count), str(timeout_s))
        return PingResult(*result)

    async def http_get(self, url: str, timeout_s: float) -> HttpResult:
        """Fetch a URL by way of the guest's kernel."""
        [result] = await self._run("get", url, str(timeout_s))
        return HttpResult(*result)

    async def pool_use(self) -> PoolUse:
        """Return zeros: the use of its pool is a secret of the guest's kernel."""
        return PoolUse(0, 0, 0)

    async def _run(self, *words: str) -> list[list[Any]]:
        """Run the program; return its lines.

        Raises:
            ChildProcessError: It failed; the message has its last words.
            PortholeError: The guest cannot be reached, or refused the program.
        """
        command = GuestCommand(
            (sys.executable, "-m", PROGRAM, *words),
            {
                "PATH": os.defpath,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        running = await self._guest.run(command)
        said = {False: bytearray(), True: bytearray()}
        end = Ended(exit_code=1)
        try:
            async with asyncio.timeout(WORK_DEADLINE_S):
                await running.end_input()
                async for item in running.said():
                    if isinstance(item, Ended):
                        end = item
                    else:
                        said[item.error] += item.data
        except TimeoutError:
            said[True] += f"it was not done after {WORK_DEADLINE_S:g} s".encode()
        finally:
            running.kill()
        if end != Ended():
            last_words = said[True][-LAST_WORDS_BYTES:].decode(errors="backslashreplace").strip()
            raise ChildProcessError(f"{words[0]} in the guest: {last_words}")
        return [json.loads(line) for line in said[False].splitlines()]


@asynccontextmanager
async def linux_guest(
    address: str, wait_s: float, tags: Iterable[str]
) -> AsyncIterator[LinuxWorkload]:
    """Connect to the init of a Linux guest, and make its root and mounts.

    Args:
        address: Where its init serves GuestControl.
        wait_s: How long that may take.
        tags: The shares that are worked on, beside ROOT_SHARE.

    Raises:
        UnavailableError: PEER_UNAVAILABLE after `wait_s` seconds.
        FailedPreconditionError: API_VERSION_MISMATCH, GUEST_REQUEST_REFUSED.
    """
    async with guest_control(address, wait_s) as guest:
        await enter_root(guest)
        for tag in tags:
            await guest.mount(GuestMount("virtiofs", tag, f"{PLACE}/{tag}"))
        yield LinuxWorkload(guest)

"""The work of the demonstration in a Linux guest; a test plays the guest."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from services.cli.demo import linux_guest as module
from services.cli.demo.linux_guest import linux_guest
from services.cli.guest_control import Ended, Output
from services.cli.views import CopyResult, FileDigest, HttpResult, PingResult, PoolUse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.cli.requests import GuestCommand, GuestMount


class Guest:
    """A guest, and the command in it.

    Attributes:
        asked: What was asked for, in order.
        lines: What the program prints.
        error: What it prints as standard error.
        end: How it ends; None: not at all.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.lines: list[list[Any]] = []
        self.error = b""
        self.end: Ended | None = Ended()
        self.killed = 0

    async def mount(self, mount: GuestMount) -> None:
        self.asked.append((mount.fs_type, mount.source, mount.target))

    async def enter_root(self, path: str) -> None:
        self.asked.append(path)

    async def run(self, command: GuestCommand) -> Self:
        assert command.arguments[:3] == (sys.executable, "-m", module.PROGRAM)
        self.asked.append(command.arguments[3:])
        return self

    async def end_input(self) -> None: ...

    async def said(self) -> AsyncIterator[Output | Ended]:
        text = "".join(json.dumps(line) + "\n" for line in self.lines).encode()
        yield Output(text[:5])
        yield Output(self.error, error=True)
        yield Output(text[5:])
        if self.end is not None:
            yield self.end
            return
        raise TimeoutError

    def kill(self) -> None:
        self.killed += 1


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    made = Guest()

    @asynccontextmanager
    async def connect(*_: object) -> AsyncIterator[Guest]:
        yield made

    monkeypatch.setattr(module, "guest_control", connect)
    return made


async def test_the_root_is_made_before_the_shares_are_mounted(guest: Guest) -> None:
    async with linux_guest("unix:/x", 1.0, ("source", "target")):
        pass
    assert guest.asked[-3:] == [
        "/newroot",
        ("virtiofs", "source", "/run/demo/source"),
        ("virtiofs", "target", "/run/demo/target"),
    ]


async def test_the_work_is_done_by_the_program_in_the_guest(guest: Guest) -> None:
    async with linux_guest("unix:/x", 1.0, ()) as work:
        guest.asked.clear()
        guest.lines = [["612f62", 3, "ab"], ["ff", 0, "cd"]]
        found = {path: digest async for path, digest in work.hash_tree("source", exclude=("x",))}
        assert found == {b"a/b": FileDigest(3, "ab"), b"\xff": FileDigest(0, "cd")}
        guest.lines = [[1, 2, 3, 4]]
        assert await work.copy_tree("source", "target", ("x", "y")) == CopyResult(1, 2, 3, 4)
        guest.lines = [[3, 2, 0.5]]
        assert await work.ping("10.0.0.1", 3, 5.0) == PingResult(3, 2, 0.5)
        guest.lines = [[200, 7, "ef"]]
        assert await work.http_get("http://10.0.0.1/", 30.0) == HttpResult(200, 7, "ef")
        assert await work.pool_use() == PoolUse(0, 0, 0)
    assert guest.asked == [
        ("hash", "/run/demo/source/", "x"),
        ("copy", "/run/demo/source", "/run/demo/target", "x", "y"),
        ("ping", "10.0.0.1", "3", "5.0"),
        ("get", "http://10.0.0.1/", "30.0"),
    ]
    assert guest.killed == 4


@pytest.mark.parametrize(
    ("end", "words"),
    [(Ended(exit_code=1), "oh no"), (Ended(signal=9), "oh no"), (None, "was not done after")],
    ids=["code", "signal", "deadline"],
)
async def test_a_program_that_fails_is_quoted(guest: Guest, end: Ended | None, words: str) -> None:
    guest.error, guest.end = b"Traceback\noh no\n", end
    async with linux_guest("unix:/x", 1.0, ()) as work:
        with pytest.raises(ChildProcessError, match=f"(?s)^ping in the guest: .*{words}"):
            await work.ping("10.0.0.1", 3, 5.0)
    assert guest.killed == 1

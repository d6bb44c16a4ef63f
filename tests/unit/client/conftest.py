"""Both clients, used in the same way, and an owner that answers them from a script."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from porthole.client import AsyncVmOwner, VmOwner

from tests.unit.client.scripted_owner import ScriptedOwner, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Client(Protocol):
    """One of the clients: methods by name."""

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        """Call a method."""

    def take(self, count: int, name: str, *arguments: Any, **more: Any) -> list[Any]:
        """Return the first items of what a method iterates over."""


class Synchronous:
    def __init__(self, owner: VmOwner) -> None:
        self._owner = owner

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        return getattr(self._owner, name)(*arguments, **more)

    def take(self, count: int, name: str, *arguments: Any, **more: Any) -> list[Any]:
        return list(islice(getattr(self._owner, name)(*arguments, **more), count))


class Asynchronous:
    def __init__(self, owner: AsyncVmOwner, runner: asyncio.Runner) -> None:
        self._owner = owner
        self._runner = runner

    def call(self, name: str, *arguments: Any, **more: Any) -> Any:
        return self._runner.run(getattr(self._owner, name)(*arguments, **more))

    def take(self, count: int, name: str, *arguments: Any, **more: Any) -> list[Any]:
        async def collect() -> list[Any]:
            taken: list[Any] = []
            async with aclosing(getattr(self._owner, name)(*arguments, **more)) as items:
                async for item in items:
                    taken.append(item)
                    if len(taken) == count:
                        break
            return taken

        return self._runner.run(collect())


@pytest.fixture
def owner() -> ScriptedOwner:
    return ScriptedOwner()


@pytest.fixture
def address(owner: ScriptedOwner, run_dir: Path) -> Iterator[str]:
    with serving(owner, run_dir) as served:
        yield served


@pytest.fixture(params=["sync", "aio"])
def client(address: str, request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "sync":
        with VmOwner(address) as connected:
            yield Synchronous(connected)
        return
    with asyncio.Runner() as runner:

        async def connect() -> AsyncVmOwner:
            return await AsyncVmOwner(address).__aenter__()

        connected_too = runner.run(connect())
        yield Asynchronous(connected_too, runner)
        runner.run(connected_too.close())

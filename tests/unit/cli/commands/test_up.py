"""How `porthole up` ends."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from services.cli.commands import up

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class SlowServices:
    """Services whose ending takes until `may_end` is set."""

    addresses = ("unix:/owner",)

    def __init__(self, *_: object, **__: object) -> None:
        self.begun = asyncio.Event()
        self.ending = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ending.set()
        await self.may_end.wait()
        self.ended = True

    async def first_to_end(self) -> Any:
        self.begun.set()
        await asyncio.Event().wait()


async def test_a_second_signal_does_not_interrupt_the_end_of_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = SlowServices()
    monkeypatch.setattr(up, "Services", lambda *_, **__: services)
    cli: Any = SimpleNamespace(settings=SimpleNamespace(run_dir=tmp_path, trace_file=None))
    serving = asyncio.create_task(up._serve(cli, [], dashboard=False))
    await asyncio.wait_for(services.begun.wait(), 10)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(services.ending.wait(), 10)
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):  # the loop sees the signal in its next turn
        await asyncio.sleep(0)
    assert not serving.done()
    services.may_end.set()
    await asyncio.wait_for(serving, 10)
    assert services.ended
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)

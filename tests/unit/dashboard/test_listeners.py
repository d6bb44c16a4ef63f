"""The listeners over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.dashboard import listeners
from services.dashboard.listeners import WebListener
from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SLOW_S = 0.6


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Answer with the path; slowly on /slow."""
    if scope["path"] == "/slow":
        await asyncio.sleep(SLOW_S)
    headers = [(b"content-length", str(len(scope["path"])).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture
async def listener() -> AsyncIterator[WebListener]:
    made = WebListener(app, ["localhost:0"])
    await made.start()
    yield made
    await made.stop()


async def connect(listener: WebListener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = listener.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(listener: WebListener, path: str) -> bytes:
    reader, writer = await connect(listener)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def test_it_serves_where_it_says(listener: WebListener) -> None:
    assert listener.addresses[0].startswith("127.0.0.1:")
    assert (await ask(listener, "/a")).endswith(b"\r\n\r\n/a")


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nhost:", b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"]
)
async def test_a_connection_on_which_no_request_comes_is_closed(
    listener: WebListener, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(listeners, "REQUEST_S", 0.1)
    reader, writer = await connect(listener)
    writer.write(sent)
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()


async def test_a_connection_whose_answer_takes_long_is_kept(
    listener: WebListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "REQUEST_S", 0.1)
    assert (await ask(listener, "/slow")).endswith(b"\r\n\r\n/slow")


async def test_a_port_that_is_in_use_is_refused(listener: WebListener) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        WebListener(app, ["127.0.0.1:0", listener.addresses[0]])
    assert caught.value.reason == "ADDRESS_UNUSABLE"


async def test_a_socket_is_its_users_alone_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    listener = WebListener(app, [f"unix:{path}"])
    await listener.start()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FailedPreconditionError) as caught:
        WebListener(app, [f"unix:{path}"])
    assert caught.value.reason == "ADDRESS_IN_USE"
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /u HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.read()).endswith(b"/u")
    writer.close()
    await listener.stop()
    assert not path.exists()

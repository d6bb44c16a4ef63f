"""What the owner takes of an answer of a peer that is not trusted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from porthole.guest.v1 import guest_init_pb2

from services.vm_owner.clients import LISTENERS_KEPT, GuestInitClient
from services.vm_owner.localhost_forwarding import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def watch_listeners(
    request: guest_init_pb2.WatchListenersRequest,
) -> AsyncIterator[guest_init_pb2.WatchListenersResponse]:
    for count in (2, 100_000):
        answer = guest_init_pb2.WatchListenersResponse()
        for port in range(count):
            answer.listeners.add(port=port, ipv4=True)
        yield answer


async def test_a_report_of_a_guest_has_a_bound() -> None:
    stub = SimpleNamespace(WatchListeners=watch_listeners)
    client = GuestInitClient(SimpleNamespace(stub=stub))  # type: ignore[arg-type]
    short, long = [report async for report in client.listeners()]
    assert short == [Listener(0, ipv4=True, ipv6=False), Listener(1, ipv4=True, ipv6=False)]
    assert [each.port for each in long] == list(range(LISTENERS_KEPT))

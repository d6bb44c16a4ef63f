"""A network namespace as the host's network, which tests change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services.simguest.net.namespace import NetworkNamespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Host:
    """The host's network, in a namespace of the test."""

    def __init__(self, namespace: NetworkNamespace) -> None:
        self.namespace = namespace

    def do(self, change: Callable[[Any], object]) -> None:
        """Make a change with an open IPRoute."""

        def run() -> None:
            from pyroute2 import IPRoute

            with IPRoute() as netlink:
                change(netlink)

        self.namespace.run(run)

    def add_interface(self, name: str, address: str = "", length: int = 24) -> None:
        def add(netlink: Any) -> None:
            netlink.link("add", ifname=name, kind="veth", peer=f"{name}-end")
            for each in (f"{name}-end", name):
                (index,) = netlink.link_lookup(ifname=each)
                netlink.link("set", index=index, state="up")
            if address:
                netlink.addr("add", index=index, address=address, prefixlen=length)

        self.do(add)

    def add_address(self, name: str, address: str, length: int = 24, **more: object) -> None:
        def add(netlink: Any) -> None:
            (index,) = netlink.link_lookup(ifname=name)
            netlink.addr("add", index=index, address=address, prefixlen=length, **more)

        self.do(add)

    def remove_address(self, name: str, address: str, length: int = 24) -> None:
        def remove(netlink: Any) -> None:
            (index,) = netlink.link_lookup(ifname=name)
            netlink.addr("del", index=index, address=address, prefixlen=length)

        self.do(remove)

    def route(self, gateway: str, priority: int = 100, command: str = "add") -> None:
        self.do(
            lambda netlink: netlink.route(
                command, dst="default", gateway=gateway, priority=priority
            )
        )

    def index(self, name: str) -> int:
        import socket

        return self.namespace.run(lambda: socket.if_nametoindex(name))


@pytest.fixture
def host() -> Iterator[Host]:
    with NetworkNamespace() as made:
        yield Host(made)

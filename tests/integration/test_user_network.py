"""A VM whose network is VirtioProxy, by its owner: names, HTTP, the host's loopback, mapped ports.

The services are in a network namespace of the test, where its servers are; no packet leaves it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from porthole.handshake.v1 import port_pb2
from porthole.machine.v1 import machine_pb2
from porthole.vmowner.v1 import vm_owner_pb2

from services.cli import clients
from services.handshake.errors import NotFoundError, PortholeError
from services.handshake.rate_limit import NO_LIMIT, RateLimit, RateLimits
from tests.support.house import House
from tests.support.http_server import Answer, serving
from tests.support.outer_network import (
    HOST,
    HOST_IPV6,
    OwnNetwork,
    make_a_host,
    name_server,
)
from tests.support.passt import PASST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.tap, pytest.mark.passt]

WSL2 = vm_owner_pb2.VM_KIND_WSL2
GUEST_IPV6 = "2001:db8:9::2"
NAME = "files.example.test"
CONTENT = os.urandom(300_000)
SOON = Duration(seconds=5)


class Guest:
    """What a VM does in its network."""

    def __init__(self, house: House, vm_id: str, stub: Any) -> None:
        self.house = house
        self.vm_id = vm_id
        self.stub = stub

    async def configure(self, **fields: Any) -> vm_owner_pb2.ConfigureNetworkingResponse:
        request = vm_owner_pb2.ConfigureNetworkingRequest(vm_id=self.vm_id, **fields)
        answer = await self.house.stub.ConfigureNetworking(request, timeout=30)
        assert answer.mode == vm_owner_pb2.NETWORKING_MODE_VIRTIO_PROXY, answer.warning.text
        return answer

    async def resolves(self, name: str) -> list[str]:
        request = machine_pb2.ResolveRequest(name=name, timeout=SOON)
        return list((await self.stub.Resolve(request, timeout=20)).addresses)

    async def gets(self, url: str) -> bool:
        """Whether the guest gets CONTENT at a URL; an answer that is something else fails."""
        request = machine_pb2.HttpGetRequest(url=url, timeout=Duration(seconds=2))
        try:
            answer = await self.stub.HttpGet(request, timeout=20)
        except PortholeError as error:
            assert error.reason in ("HTTP_FAILED", "HTTP_TIMEOUT")  # noqa: PT017
            return False
        assert (answer.status, answer.sha256) == (200, hashlib.sha256(CONTENT).digest())
        return True

    @asynccontextmanager
    async def serves(self, address: str = "", port: int = 0) -> AsyncIterator[int]:
        call = self.stub.Serve(machine_pb2.ServeRequest(address=address, port=port, body=CONTENT))
        try:
            yield (await call.read()).port
        finally:
            call.cancel()

    async def throttled(self) -> int:
        request = vm_owner_pb2.GetVmRequest(vm_id=self.vm_id)
        devices = (await self.house.stub.GetVm(request)).vm.devices
        return max(device.counters.throttled for device in devices)

    async def mapped(self) -> list[int]:
        request = vm_owner_pb2.ListPortsRequest(vm_id=self.vm_id)
        answer = await self.house.stub.ListPorts(request)
        return [mapping.key.listen_port for mapping in answer.mappings]

    async def until_mapped(self, *ports: int) -> None:
        """Wait until these ports are mapped, which no event of the API tells."""
        async with asyncio.timeout(20):
            while await self.mapped() != list(ports):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def maps(self, address: str, guest_port: int) -> port_pb2.PortKey:
        key = port_pb2.PortKey(protocol=port_pb2.PORT_PROTOCOL_TCP, listen_address=address)
        mapping = port_pb2.PortMapping(key=key, guest_port=guest_port)
        request = vm_owner_pb2.MapPortRequest(vm_id=self.vm_id, mapping=mapping)
        return (await self.house.stub.MapPort(request, timeout=20)).mapping.key


@pytest_asyncio.fixture
async def guest(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Guest]:
    """A guest; the parameter is its .wslconfig."""
    monkeypatch.setenv("PORTHOLE_PASST", str(PASST))
    async with AsyncExitStack() as stack:
        stack.enter_context(OwnNetwork())
        make_a_host()
        house = House(run_dir)
        await house.start(stack)
        vm = await house.create(WSL2, getattr(request, "param", ""))
        stub = await stack.enter_async_context(house.workload(vm))
        yield Guest(house, vm.vm_id, stub)
        await house.terminate(vm.vm_id)
        assert house.broken_rules() == []


async def test_a_name_is_resolved_and_its_file_fetched(guest: Guest) -> None:
    await guest.configure()
    with name_server({NAME: (HOST,)}) as asked, serving({"/f": Answer(CONTENT)}, HOST) as server:
        assert await guest.resolves(NAME) == [HOST]
        assert await guest.gets(f"http://{NAME}:{server.port}/f")
        with pytest.raises(PortholeError) as unknown:
            await guest.resolves("nobody.example.test")
    assert unknown.value.reason == "NAME_UNRESOLVED"
    assert {NAME, "nobody.example.test"} <= set(asked)  # the test's own server asks, too
    [(_, headers)] = server.asked
    assert headers["Host"] == f"{NAME}:{server.port}"


async def test_ipv6_is_resolved_fetched_and_mapped(guest: Guest) -> None:
    await guest.configure(options=f"client_ip_ipv6={GUEST_IPV6}/64")
    with (
        name_server({NAME: (HOST_IPV6,)}),
        serving({"/f": Answer(CONTENT)}, HOST_IPV6) as server,
    ):
        assert await guest.resolves(NAME) == [HOST_IPV6]
        assert await guest.gets(f"http://{NAME}:{server.port}/f")
    async with guest.serves("::") as port:
        key = await guest.maps("::1", port)
        assert await from_outside(key) == CONTENT


@pytest.mark.parametrize("asked_for", [False, True], ids=["not asked for", "asked for"])
async def test_the_hosts_loopback_is_reached_only_where_it_was_asked_for(
    guest: Guest, asked_for: bool
) -> None:
    answer = await guest.configure(host_loopback=asked_for)
    assert bool(answer.host_loopback_address) == asked_for
    eth0, loopback0 = (adapter.options for adapter in answer.adapters)
    with serving({"/f": Answer(CONTENT)}) as server:
        assert not await guest.gets(f"http://{answer.gateway_address}:{server.port}/f")
        address = answer.host_loopback_address or first_address(loopback0)
        assert await guest.gets(f"http://{address}:{server.port}/f") == asked_for
    assert first_address(eth0) == answer.gateway_address
    assert len(server.asked) == asked_for


def first_address(options: str) -> str:
    """Return the first address of an adapter's network, which is its host's end."""
    import ipaddress

    [client] = [item for item in options.split(";") if item.startswith("client_ip=")]
    return str(ipaddress.IPv4Interface(client.partition("=")[2]).network[1])


async def test_a_service_of_the_guest_answers_behind_a_mapped_port(guest: Guest) -> None:
    await guest.configure()
    async with guest.serves() as port:
        key = await guest.maps("", port)
        assert key.listen_address == "127.0.0.1"
        assert await from_outside(key) == CONTENT
        assert await guest.mapped() == [key.listen_port]  # and none by itself
        request = vm_owner_pb2.UnmapPortRequest(vm_id=guest.vm_id, key=key)
        await guest.house.stub.UnmapPort(request)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((key.listen_address, key.listen_port), timeout=10)


async def from_outside(key: port_pb2.PortKey) -> bytes:
    host = f"[{key.listen_address}]" if ":" in key.listen_address else key.listen_address

    def fetch() -> bytes:
        with urllib.request.urlopen(f"http://{host}:{key.listen_port}/", timeout=10) as answer:
            body: bytes = answer.read()
            return body

    return await asyncio.to_thread(fetch)


async def test_a_rate_limit_holds_until_it_is_lifted(guest: Guest, run_dir: Path) -> None:
    await guest.configure(options="limit_rx=bps=200000")
    with name_server({}), serving({"/f": Answer(CONTENT)}, HOST) as server:  # it asks for its name
        url = f"http://{HOST}:{server.port}/f"
        began = time.monotonic()
        assert await guest.gets(url)
        # Not counted: the burst, and the last frame.
        assert time.monotonic() - began > (len(CONTENT) - 2 * 65_550) / 200_000
        async with clients.owner(f"unix:{run_dir}/owner.sock", 10) as owner:
            wanted = RateLimits(transmit=RateLimit(pps=9000), receive=NO_LIMIT)
            limits = await owner.set_rate_limits(guest.vm_id, "eth0", wanted)
            with pytest.raises(NotFoundError):
                await owner.set_rate_limits(guest.vm_id, "eth1", wanted)
        assert (limits.tag, limits.receive.bps, limits.transmit.pps) == ("eth0", 0, 9000)
        throttled = await guest.throttled()
        assert throttled > 0
        assert await guest.gets(url)
        assert await guest.throttled() == throttled


@pytest.mark.parametrize("guest", ["[wsl2]\nlocalhostForwarding=true\n"], indirect=True)
async def test_ports_on_which_the_guest_listens_are_those_of_the_hosts_loopback(
    guest: Guest,
) -> None:
    await guest.configure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        async with guest.serves(port=busy), guest.serves() as port:
            await guest.until_mapped(port)
            key = port_pb2.PortKey(listen_address="127.0.0.1", listen_port=port)
            assert await from_outside(key) == CONTENT
        await guest.until_mapped()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
    vm = await guest.house.get(guest.vm_id)
    assert [warning.id for warning in vm.warnings] == ["PortNotForwarded"]
    assert "PORT_IN_USE" in vm.warnings[0].text

"""The guest's network through passt, whose host is a network namespace of the test."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import (
    UserBackend,
    UserSettings,
)
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
    UnavailableError,
)
from services.handshake.ports import PortKey, PortMapping, PortProtocol, PortState
from services.simguest.net.namespace import NetworkNamespace
from services.simguest.net.tap import TapAdapter
from services.wire.virtio_net import F_CSUM
from tests.support.http_server import serving_directory
from tests.support.passt import PASST, passt_processes
from tests.unit.devicehost.vhost_user.conftest import eventually
from tests.unit.simguest.rig import VM_ID, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[Callable[[], socket.socket]], socket.socket]
    """Runs a function in a namespace."""

pytestmark = [pytest.mark.tap, pytest.mark.passt]

HOST = "192.0.2.1"
"""The host's address, in the namespace that passt is in."""
GUEST, GATEWAY, RESOLVER, LOOPBACK = "10.9.0.2", "10.9.0.1", "10.9.0.53", "10.9.0.127"
OPTIONS = f"client_ip={GUEST}/24;gateway_ip={GATEWAY};client_mac=52:54:00:12:34:56"
ELSEWHERE = "198.51.100.1"
TCP, UDP = PortProtocol.TCP, PortProtocol.UDP


@pytest.fixture
def host() -> Iterator[NetworkNamespace]:
    """The host's side: an address, and ICMP echo for ordinary users, as distributions allow it."""
    with NetworkNamespace() as made:
        made.run(_give_addresses)
        yield made


def _give_addresses() -> None:
    from pyroute2 import IPRoute

    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    with IPRoute() as netlink:
        netlink.addr("add", index=1, address=HOST, prefixlen=32)


class Network:
    """A guest whose eth0 is on a user-mode network."""

    def __init__(self, run_dir: Path, host: NetworkNamespace, settings: UserSettings) -> None:
        self.host = host
        self.rig = Rig(run_dir)
        self.workload = self.rig.workload
        backend = UserBackend(settings, str(PASST))
        host.run(lambda: self.rig.adapter("eth0", backend, f"{GUEST}/24", GATEWAY, OPTIONS))

    def map_port(self, key: PortKey, guest_port: int) -> PortMapping:
        mapping = PortMapping(key, guest_port)
        return self.host.run(lambda: self.rig.host.map_port(VM_ID, "eth0", mapping))

    def unmap_port(self, key: PortKey) -> None:
        self.host.run(lambda: self.rig.host.unmap_port(VM_ID, "eth0", key))

    def ports(self) -> tuple[PortMapping, ...]:
        return self.rig.host.list_ports(VM_ID, "eth0")

    def reaches(self, address: str, port: int) -> bool:
        """Whether the guest can connect to a TCP server."""

        def connect() -> bool:
            try:
                socket.create_connection((address, port), 2).close()
            except OSError:
                return False
            return True

        return self.workload.in_network(connect)

    def await_change(self, words: str) -> str:
        while words not in (change := self.rig.changes.get(timeout=20)):
            continue
        return change


@pytest.fixture
def network(
    run_dir: Path, host: NetworkNamespace, request: pytest.FixtureRequest
) -> Iterator[Network]:
    made = Network(run_dir, host, getattr(request, "param", UserSettings()))
    yield made
    made.rig.close()
    assert passt_processes() == []


@contextmanager
def tcp_server(run: Run, address: str, port: int) -> Iterator[list[str]]:
    """A server inside a namespace, which repeats what it is told; gives its peers' addresses."""
    peers: list[str] = []
    listening = run(lambda: socket.create_server((address, port)))

    def serve() -> None:
        while True:
            try:
                connection, peer = listening.accept()
            except OSError:
                return
            peers.append(peer[0])
            with connection:
                connection.sendall(connection.recv(100))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield peers
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()


def ask_tcp(address: str, port: int, words: bytes) -> bytes:
    with socket.create_connection((address, port), 5) as connection:
        connection.sendall(words)
        return connection.recv(100)


def listens(address: str, port: int) -> bool:
    """Whether somebody takes connections; passt takes them before it asks the guest."""
    try:
        socket.create_connection((address, port), 5).close()
    except ConnectionResetError:
        return True
    except ConnectionRefusedError:
        return False
    return True


def test_ping(network: Network) -> None:
    result = network.workload.ping(HOST, 3, 5.0)
    assert (result.sent, result.received) == (3, 3)


@pytest.mark.parametrize(
    "network", [UserSettings(host_loopback=(GATEWAY,))], indirect=True, ids=["gateway"]
)
def test_ping_of_a_gateway_that_is_the_hosts_loopback(network: Network) -> None:
    assert network.workload.ping(GATEWAY, 1, 5.0).received == 1


def test_http_in_frames_of_64_kib(network: Network, host: NetworkNamespace, shared: Path) -> None:
    contents = os.urandom(8 << 20)
    (shared / "file").write_bytes(contents)
    with serving_directory(host, HOST, 8080, shared):
        got = network.workload.http_get(f"http://{HOST}:8080/file", 20.0)
    assert got == (200, len(contents), hashlib.sha256(contents).digest())
    counters = network.rig.counters("eth0")
    assert counters.bytes_out > len(contents)
    assert counters.frames_dropped == 0


def test_an_upload_whose_checksums_are_left_to_the_network(
    network: Network, host: NetworkNamespace
) -> None:
    adapter = network.workload.adapter("eth0")
    assert isinstance(adapter, TapAdapter)
    assert adapter.driver.features & F_CSUM
    contents = os.urandom(4 << 20)
    listening = host.run(lambda: socket.create_server((HOST, 8083)))

    def upload() -> None:
        with socket.create_connection((HOST, 8083), 5) as connection:
            connection.sendall(contents)

    thread = threading.Thread(target=network.workload.in_network, args=(upload,))
    thread.start()
    with listening:
        listening.settimeout(10)
        connection, _ = listening.accept()
    with connection, connection.makefile("rb") as arriving:
        assert hashlib.sha256(arriving.read()).digest() == hashlib.sha256(contents).digest()
    thread.join()


@pytest.mark.parametrize(
    "network",
    [UserSettings(dns_forward=(RESOLVER,), dns_host=("127.0.0.1",))],
    indirect=True,
    ids=["dns"],
)
def test_a_name_is_resolved_by_the_hosts_server(network: Network, host: NetworkNamespace) -> None:
    server = host.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    host.run(lambda: server.bind(("127.0.0.1", 53)))
    question = b"\x07example\x04test\x00" + struct.pack("!HH", 1, 1)

    def answer() -> None:
        query, peer = server.recvfrom(512)
        (number,) = struct.unpack_from("!H", query)
        assert query[12:].startswith(question)
        record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("198.51.100.7")
        header = struct.pack("!6H", number, 0x8180, 1, 1, 0, 0)
        server.sendto(header + question + record, peer)

    def resolve() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + question, (RESOLVER, 53))
            return client.recv(512)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert network.workload.in_network(resolve)[-4:] == socket.inet_aton("198.51.100.7")
    finally:
        thread.join()
        server.close()


def test_the_hosts_loopback_is_unreachable(network: Network, host: NetworkNamespace) -> None:
    with tcp_server(host.run, "127.0.0.1", 8081), tcp_server(host.run, HOST, 8082):
        assert network.reaches(HOST, 8082)
        assert not network.reaches(GATEWAY, 8081)
        assert not network.reaches(LOOPBACK, 8081)


@pytest.mark.parametrize(
    "network", [UserSettings(host_loopback=(LOOPBACK,))], indirect=True, ids=["loopback"]
)
def test_the_hosts_loopback_is_reachable_at_an_address(
    network: Network, host: NetworkNamespace
) -> None:
    with tcp_server(host.run, "127.0.0.1", 8081):
        assert network.reaches(LOOPBACK, 8081)
        assert not network.reaches(GATEWAY, 8081)


def test_a_mapped_tcp_port_answers(network: Network, host: NetworkNamespace) -> None:
    with tcp_server(network.workload.in_network, GUEST, 80) as peers:
        mapping = network.map_port(PortKey(TCP, "", 0), 80)
        assert mapping.key.address == "127.0.0.1"
        assert mapping.key.port > 0
        assert network.ports() == (mapping,)
        ask = partial(ask_tcp, "127.0.0.1", mapping.key.port, b"are you there?")
        assert host.run(ask) == b"are you there?"
        assert peers == [GATEWAY]
        network.unmap_port(mapping.key)
        with pytest.raises(ConnectionRefusedError):
            host.run(ask)
    assert network.ports() == ()


def test_a_mapped_udp_port_answers(network: Network, host: NetworkNamespace) -> None:
    mapping = network.map_port(PortKey(UDP, HOST, 5353), 53)
    server = network.workload.in_network(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    network.workload.in_network(lambda: server.bind((GUEST, 53)))
    client = host.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with server, client:
        client.settimeout(5)
        server.settimeout(5)
        client.sendto(b"question", (HOST, mapping.key.port))
        words, peer = server.recvfrom(100)
        server.sendto(words + b" and answer", peer)
        assert client.recv(100) == b"question and answer"


def test_mappings_of_both_families_and_protocols_live_side_by_side(
    network: Network, host: NetworkNamespace
) -> None:
    keys = [
        PortKey(TCP, "127.0.0.1", 8000),
        PortKey(UDP, "127.0.0.1", 8000),
        PortKey(TCP, "::1", 8000),
        PortKey(TCP, "0.0.0.0", 8001),
        PortKey(TCP, "::", 8001),
    ]
    for number, key in enumerate(keys):
        network.map_port(key, 1000 + number)
    assert [mapping.key for mapping in network.ports()] == keys
    assert {mapping.state for mapping in network.ports()} == {PortState.LISTENING}
    network.unmap_port(keys[1])
    assert [mapping.key for mapping in network.ports()] == [keys[0], *keys[2:]]
    assert host.run(lambda: listens("::1", 8001))


def taken(host: NetworkNamespace, port: int) -> socket.socket:
    return host.run(lambda: socket.create_server(("127.0.0.1", port)))


@pytest.mark.parametrize(
    ("key", "guest_port", "error", "reason"),
    [
        (PortKey(TCP, "", 8000), 0, InvalidArgumentError, "PORT_NUMBER"),
        (PortKey(TCP, "", 65536), 80, InvalidArgumentError, "PORT_NUMBER"),
        (PortKey(TCP, "localhost", 8000), 80, InvalidArgumentError, "PORT_ADDRESS"),
        (PortKey(TCP, "fe80::1%lo", 8000), 80, InvalidArgumentError, "PORT_ADDRESS"),
        (PortKey(TCP, "224.0.0.1", 8000), 80, InvalidArgumentError, "PORT_ADDRESS"),
        (PortKey(PortProtocol.UNSPECIFIED, "", 8000), 80, InvalidArgumentError, "PORT_PROTOCOL"),
        (PortKey(TCP, ELSEWHERE, 0), 80, FailedPreconditionError, "PORT_ADDRESS_UNAVAILABLE"),
        (PortKey(TCP, ELSEWHERE, 80), 80, PermissionDeniedError, "PORT_NOT_PERMITTED"),
        (PortKey(TCP, ELSEWHERE, 8000), 80, FailedPreconditionError, "PORT_ADDRESS_UNAVAILABLE"),
        (PortKey(TCP, "", 1023), 80, PermissionDeniedError, "PORT_NOT_PERMITTED"),
        (PortKey(TCP, "", 9000), 80, FailedPreconditionError, "PORT_IN_USE"),
        (PortKey(TCP, "", 9001), 80, AlreadyExistsError, "PORT_EXISTS"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_changes_nothing(
    network: Network,
    host: NetworkNamespace,
    key: PortKey,
    guest_port: int,
    error: type[PortholeError],
    reason: str,
) -> None:
    mapping = network.map_port(PortKey(TCP, "", 9001), 80)
    with taken(host, 9000), pytest.raises(error) as raised:
        network.map_port(key, guest_port)
    assert raised.value.reason == reason
    assert network.ports() == (mapping,)
    assert host.run(lambda: listens("127.0.0.1", 9001))


def test_what_is_not_mapped_cannot_be_unmapped(network: Network) -> None:
    with pytest.raises(NotFoundError) as raised:
        network.unmap_port(PortKey(TCP, "", 8000))
    assert raised.value.reason == "PORT_UNKNOWN"


def test_an_adapter_has_a_bounded_number_of_mappings(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.devicehost.devices.net.user.ports.MAX_PORTS", 2)
    for port in (8000, 8001):
        network.map_port(PortKey(TCP, "", port), 80)
    with pytest.raises(PortholeError) as raised:
        network.map_port(PortKey(TCP, "", 8002), 80)
    assert raised.value.reason == "PORTS_EXHAUSTED"
    assert raised.value.metadata == {"used": "2", "total": "2"}


def test_a_passt_that_is_killed_is_started_again_with_its_ports(
    network: Network, host: NetworkNamespace
) -> None:
    kept = network.map_port(PortKey(TCP, "", 0), 80)
    lost = network.map_port(PortKey(TCP, "", 0), 81)
    (pid,) = passt_processes()
    os.kill(pid, signal.SIGKILL)
    with taken_at_once(host, lost.key.port):
        assert "SIGKILL" in network.await_change("the link is down")
        network.await_change("the link is up")
        states = {mapping.key: (mapping.state, mapping.reason) for mapping in network.ports()}
    assert states == {
        kept.key: (PortState.LISTENING, ""),
        lost.key: (PortState.LOST, "PORT_IN_USE"),
    }
    with tcp_server(network.workload.in_network, GUEST, 80):  # the guest has said nothing yet
        ask = partial(ask_tcp, "127.0.0.1", kept.key.port, b"still there?")
        assert host.run(ask) == b"still there?"
    assert network.workload.ping(HOST, 1, 5.0).received == 1
    assert network.rig.counters("eth0").link_losses == 1
    network.unmap_port(lost.key)
    assert [mapping.key for mapping in network.ports()] == [kept.key]


def taken_at_once(host: NetworkNamespace, port: int) -> socket.socket:
    """Listen on a port as soon as a process that has been killed gives it up."""
    made: list[socket.socket] = []

    def listen() -> bool:
        try:
            made.append(taken(host, port))
        except OSError:
            return False
        return True

    assert eventually(listen)
    return made[0]


def test_a_passt_that_stops_holds_up_neither_ports_nor_a_removal(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.devicehost.devices.net.user.ports._PESTO_S", 0.5)
    (pid,) = passt_processes()
    os.kill(pid, signal.SIGSTOP)

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for _ in range(200):
                with contextlib.suppress(BlockingIOError):
                    sender.sendto(bytes(60_000), (HOST, 9))

    network.workload.in_network(flood)
    with pytest.raises(UnavailableError) as raised:
        network.map_port(PortKey(TCP, "", 0), 80)
    assert raised.value.reason == "USER_NETWORK_DOWN"
    began = time.monotonic()
    network.rig.remove_from_host("eth0")
    assert time.monotonic() - began < 10
    assert passt_processes() == []


def test_an_adapter_that_is_removed_ends_its_passt(network: Network) -> None:
    assert len(passt_processes()) == 1
    network.rig.remove_from_host("eth0")
    assert passt_processes() == []

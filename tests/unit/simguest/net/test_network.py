"""The guest's network: its own namespace, through virtio-net and a TAP in another namespace."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.simguest.net import namespace as namespaces
from services.simguest.net.namespace import NetworkNamespace
from services.simguest.net.tap import TapAdapter
from services.simguest.workload import network
from tests.support.http_server import serving_directory
from tests.unit.devicehost.vhost_user.conftest import eventually
from tests.unit.simguest.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.simguest.net.driver import NetDriver

HOST, GUEST, NOBODY = "192.0.2.1", "192.0.2.2", "192.0.2.77"
HOST_MAC = bytes.fromhex("020000000001")
GUEST_MAC = "52:54:00:12:34:56"

pytestmark = pytest.mark.tap


@pytest.fixture
def host_network() -> Iterator[NetworkNamespace]:
    """The namespace of the device's TAP."""
    with NetworkNamespace() as made:
        yield made


@pytest.fixture(params=[16, 0], ids=["pool", "no pool"])
def networked(
    run_dir: Path, host_network: NetworkNamespace, request: pytest.FixtureRequest
) -> Iterator[Rig]:
    """A guest with eth0, joined to the host's namespace."""
    rig = Rig(run_dir, pool_mib=request.param)
    options = f"client_mac={GUEST_MAC}"
    host_network.run(lambda: _add(rig, host_network, 1500, options))
    yield rig
    rig.close()


def _add(
    rig: Rig, host_network: NetworkNamespace, mtu: int, options: str = "", queues: int = 1
) -> None:
    with_mtu = partial(host_network.configure, "tap0", mac=HOST_MAC, mtu=mtu)
    _make_tap("tap0", queues)
    with_mtu(address=f"{HOST}/24")
    rig.adapter("eth0", "tap0", f"{GUEST}/24", HOST, options)


def _make_tap(name: str, queues: int) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        flags = dict.fromkeys(("no_pi", "one_queue", "vnet_hdr", "multi_queue"), 0)
        several = {"ifr": {**flags, "multi_queue": 1}} if queues > 1 else {}
        netlink.link("add", ifname=name, kind="tuntap", mode="tap", **several)


def test_ping_and_the_adapters_own_address(networked: Rig) -> None:
    result = networked.workload.ping(HOST, 5, 5.0)
    assert (result.sent, result.received) == (5, 5)
    assert 0 < result.round_trip_median_s < 5
    adapter = networked.workload.adapter("eth0")
    assert isinstance(adapter, TapAdapter)
    assert adapter.driver.mac.hex(":") == GUEST_MAC
    assert adapter.driver.link_up
    # Five requests, five replies, and address resolution. A reply may arrive before the device
    # has returned the buffer of its request.
    assert eventually(lambda: networked.counters("eth0").requests >= 12)
    assert networked.counters("eth0").translations_refused == 0


def test_http_through_the_adapter(
    networked: Rig, host_network: NetworkNamespace, shared: Path
) -> None:
    contents = os.urandom(3 << 20)
    (shared / "file").write_bytes(contents)

    with serving_directory(host_network, HOST, 8080, shared):
        got = networked.workload.http_get(f"http://{HOST}:8080/file", 20.0)
        missing = networked.workload.http_get(f"http://{HOST}:8080/missing", 20.0)
    assert got == (200, len(contents), hashlib.sha256(contents).digest())
    assert missing.status == 404
    assert networked.counters("eth0").bytes_out > len(contents)


@pytest.mark.parametrize("pairs", [1, 4])
def test_segments_of_64_kib_pass_whole(
    run_dir: Path, host_network: NetworkNamespace, pairs: int
) -> None:
    rig = Rig(run_dir)
    sent = os.urandom(1 << 20) * 32
    try:
        host_network.run(lambda: _add(rig, host_network, 1500, f"queues={pairs}", pairs))
        adapter = rig.workload.adapter("eth0")
        assert isinstance(adapter, TapAdapter)
        assert adapter.driver.pairs == pairs
        listener = host_network.run(lambda: socket.create_server((HOST, 7000)))
        with listener:
            back: list[bytes] = []
            thread = threading.Thread(target=lambda: back.append(_echo(listener, len(sent))))
            thread.start()
            received = rig.workload.in_network(lambda: _send_and_receive(sent))
            thread.join()
        assert back == [sent]
        assert received == sent
        counters = rig.counters("eth0")
        assert counters.bytes_in / counters.requests > 1500, "frames of the MTU would be 1,514"
        assert counters.translations_refused == 0
    finally:
        rig.close()


def _send_and_receive(data: bytes) -> bytes:
    with socket.create_connection((HOST, 7000), timeout=30) as connection:
        connection.sendall(data)
        with connection.makefile("rb") as stream:
            return stream.read(len(data))


def _echo(listener: socket.socket, length: int) -> bytes:
    """Take all that a client sends, send it back, and return it."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        data = stream.read(length)
        connection.sendall(data)
        return data


def test_unreachable_addresses_are_reported(networked: Rig) -> None:
    assert networked.workload.ping(NOBODY, 1, 0.2) == (1, 0, 0.0)
    with pytest.raises(UnavailableError) as refused:
        networked.workload.http_get(f"http://{HOST}:81/", 5.0)
    assert refused.value.reason == "HTTP_FAILED"
    with pytest.raises(DeadlineExceededError) as late:
        networked.workload.http_get(f"http://{NOBODY}/", 0.2)
    assert late.value.reason == "HTTP_TIMEOUT"


def test_the_guest_does_not_see_the_hosts_network(networked: Rig) -> None:
    links = networked.workload.in_network(_link_names)
    assert links == {"lo", "eth0"}


def _link_names() -> set[str]:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        return {link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}


@pytest.mark.skipif(shutil.which("nsenter") is None, reason="needs nsenter (util-linux)")
def test_tools_enter_the_namespace(networked: Rig) -> None:
    namespace = networked.workload._namespace
    assert namespace is not None
    enter = f"--net=/proc/{os.getpid()}/fd/{namespace.fd}"
    done = subprocess.run(
        ["nsenter", enter, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True
    )
    assert "eth0" in done.stdout


def test_jumbo_frames_span_receive_buffers(run_dir: Path, host_network: NetworkNamespace) -> None:
    rig = Rig(run_dir)
    try:
        host_network.run(lambda: _add(rig, host_network, 9000))
        adapter = rig.workload.adapter("eth0")
        assert isinstance(adapter, TapAdapter)
        assert adapter.driver.mtu == 9000

        def big_datagram_echo() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.settimeout(5)
                sender.connect((HOST, 7000))
                sender.send(bytes(range(256)) * 34)
                return sender.recv(10_000)

        listener = host_network.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with listener:
            listener.bind((HOST, 7000))
            listener.settimeout(5)

            def echo() -> None:
                data, sender = listener.recvfrom(10_000)
                listener.sendto(data, sender)

            thread = threading.Thread(target=echo)
            thread.start()
            assert rig.workload.in_network(big_datagram_echo) == bytes(range(256)) * 34
            thread.join()
        assert rig.counters("eth0").frames_dropped == 0
    finally:
        rig.close()


def test_detaching_removes_the_interface(networked: Rig) -> None:
    networked.workload.detach("eth0")
    assert networked.workload.in_network(_link_names) == {"lo"}
    with pytest.raises(NotFoundError):
        networked.workload.adapter("eth0")


def test_a_device_that_dies_leaves_the_guest_running(networked: Rig) -> None:
    networked.remove_from_host("eth0")
    assert networked.workload.ping(HOST, 1, 0.3).received == 0
    networked.workload.detach("eth0")


def test_without_the_right_the_adapter_works_by_its_python_api(
    run_dir: Path, host_network: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(run_dir)
    make = host_network.run

    class NoRights:
        def unshare(self, _: int) -> int:
            return -1

        setns = namespaces._libc.setns

    monkeypatch.setattr(namespaces, "_libc", NoRights())
    monkeypatch.setattr("ctypes.get_errno", lambda: 1)
    try:
        make(lambda: _add(rig, host_network, 1500))
        with pytest.raises(FailedPreconditionError) as raised:
            rig.workload.ping(HOST, 1, 1.0)
        assert raised.value.reason == "NETNS_UNAVAILABLE"
        assert "CAP_SYS_ADMIN" in raised.value.message

        driver = rig.workload.adapter("eth0")
        assert not isinstance(driver, TapAdapter)
        answer = _ask(driver)
        assert answer[22:28] == HOST_MAC
        with pytest.raises(InvalidArgumentError) as short:
            driver.send_frame(b"x" * 13)
        assert short.value.reason == "FRAME_LENGTH"
        rig.remove_from_host("eth0")
        with contextlib.suppress(DeadlineExceededError):
            while driver.receive(0.1):
                pass  # a frame that the host's stack sent unasked
        with pytest.raises(DeadlineExceededError) as none:
            driver.receive(0.1)
        assert none.value.reason == "NO_FRAME"
    finally:
        rig.close()


def _ask(driver: NetDriver) -> bytes:
    """Ask for the host's hardware address as a stack does, again after a time without a reply.

    The kernel may send nothing through a TAP in the first second after it is opened.
    """
    for _ in range(20):
        driver.send_frame(_arp(driver.mac))
        with contextlib.suppress(DeadlineExceededError):
            while True:
                frame = driver.receive(0.5)
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
                    return frame
    pytest.fail("the host has replied to none of 20 requests")


def _arp(mac: bytes) -> bytes:
    """Return an ARP request for HOST's address (RFC 826)."""
    addresses = bytes([192, 0, 2, 2]), bytes([192, 0, 2, 1])
    body = bytes.fromhex("0001080006040001") + mac + addresses[0] + bytes(6) + addresses[1]
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def test_a_guest_without_adapter_has_no_network(rig: Rig) -> None:
    with pytest.raises(FailedPreconditionError) as raised:
        rig.workload.ping(HOST)
    assert raised.value.reason == "NO_ADAPTER"


def test_impossible_addresses_and_names_are_refused() -> None:
    with NetworkNamespace() as namespace:
        with pytest.raises(InvalidArgumentError) as name:
            namespace.add_tap("much too long a name")
        assert name.value.reason == "INTERFACE_NAME"
        [fd] = namespace.add_tap("eth0")
        try:
            with pytest.raises(InvalidArgumentError) as address:
                namespace.configure("eth0", mac=HOST_MAC, mtu=1500, address="300.1.2.3/24")
            assert address.value.reason == "INTERFACE_ADDRESS"
            with pytest.raises(FailedPreconditionError) as gateway:
                namespace.configure("eth0", mac=HOST_MAC, mtu=1500, gateway="198.51.100.1")
            assert gateway.value.reason == "INTERFACE_REFUSED"
            namespace.configure(
                "eth0", mac=HOST_MAC, mtu=1500, address="fd00::2/64", gateway="fd00::1"
            )
            assert namespace.run(lambda: network.ping("fd00::2", 1, 5.0)).received == 1
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: network.ping("host.example", 1, 1.0), "PING_ADDRESS"),
        (lambda: network.ping("192.0.2.1", 1001, 1.0), "PING_COUNT"),
        (lambda: network.http_get("https://192.0.2.1/", 1.0), "HTTP_URL"),
        (lambda: network.http_get("http://192.0.2.1:port/", 1.0), "HTTP_URL"),
        (lambda: network.http_get("http://192.0.2.1/a b", 1.0), "HTTP_URL"),
    ],
)
def test_impossible_pings_and_urls_are_refused(call: object, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        call()  # type: ignore[operator]
    assert raised.value.reason == reason

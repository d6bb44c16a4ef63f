"""The benchmark's networks carry its loads, and leave nothing behind. No time is judged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.net import peers, profiles, rounds
from bench.net.cases import Direction, Load, NetCase
from bench.net.namespaces import SERVER, Namespaces, NetworkError, pair
from bench.net.peers import Network
from bench.net.results import ENDS
from bench.profiles import is_possible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.net.peers import Peer

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
    pytest.mark.root,
    pytest.mark.tap,
    pytest.mark.iperf3,
]

ROOT = Path(__file__).parents[2]
SECONDS = 0.5
SEGMENTS = 40
CASES = [
    NetCase(load=Load.TCP, bytes=1 << 17),
    NetCase(load=Load.TCP, direction=Direction.DOWN, bytes=1 << 17),
    NetCase(load=Load.UDP, bytes=1400),
    NetCase(load=Load.UDP, direction=Direction.DOWN),
    NetCase(load=Load.PING, bytes=56),
    NetCase(load=Load.ECHO),
    NetCase(load=Load.HTTP, streams=2),
    NetCase(load=Load.CONNECT),
]


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    subprocess.run(["make", "--quiet", "front-end"], cwd=ROOT, check=True)


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def left() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("ph-bench-*")}


def check(case: NetCase, network: Network) -> None:
    found = rounds.once(case, network, SECONDS)
    assert not found.failure, case.name
    assert found.rate > 0, case.name
    assert (found.p50_us > 0) == case.is_timed, case.name
    assert found.p50_us <= found.p99_us
    assert (found.ends_cpu_s > 0) != case.is_timed, case.name


def test_every_load_is_measured_on_our_device() -> None:
    before = left()
    with peers.TAP.run() as network:
        assert len(left() - before) == 2
        for case in CASES:
            check(case, network)
    assert left() == before


@pytest.mark.passt
@pytest.mark.parametrize(
    "peer", [peers.USER, peers.VHOST_USER, peers.PASTA], ids=lambda peer: peer.name
)
def test_a_user_mode_network_carries_streams_of_both_directions(peer: Peer) -> None:
    # Down: passt leaves checksums out in its vhost-user mode, and the guest's stack drops such
    # packets unless the front-end vouches for them.
    with peer.run() as network:
        for case in (*CASES[:2], NetCase(load=Load.ECHO)):
            check(case, network)


@pytest.mark.passt
def test_a_network_that_never_sleeps_is_set_up_for_each_of_its_own_measurements() -> None:
    before = left()
    cases = [NetCase(load=Load.UDP), NetCase(load=Load.ECHO)]
    assert peers.USER_POLLING.alone
    found = list(rounds.measure(cases, [peers.VETH, peers.USER_POLLING], SECONDS, 1))
    assert [[row.name for row in each.rows] for each in found] == [
        ["veth"],
        ["veth", "user, polling driver"],
    ]
    assert not any(row.failed for each in found for row in each.rows)
    assert left() == before


@pytest.mark.passt
@pytest.mark.skipif(bool(peers.QEMU_STREAM.missing), reason="needs QEMU 10 (make guest)")
def test_the_stream_socket_of_qemu_carries_datagrams() -> None:
    with peers.QEMU_STREAM.run() as network:
        check(NetCase(load=Load.UDP, bytes=1400), network)


def test_a_device_with_two_pairs_carries_streams() -> None:
    with peers.TAP_PAIRS.run() as network:
        check(NetCase(load=Load.TCP, streams=4, bytes=1 << 17), network)


RECEIVER = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
    wire.settimeout(10)
    wire.bind(("{SERVER}", 5201))
    print("ready", flush=True)
    print({{len(wire.recv(2000)) for _ in range({SEGMENTS})}}, flush=True)
"""
SENDER = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
    wire.setsockopt(socket.IPPROTO_UDP, 103, 1400)  # UDP_SEGMENT
    wire.sendto(bytes(1400 * {SEGMENTS}), ("{SERVER}", 5201))
"""


def received_by(namespace: str, interface: str) -> int:
    command = ["ip", "-n", namespace, "-s", "-j", "link", "show", interface]
    (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    packets: int = found["stats64"]["rx"]["packets"]
    return packets


def test_segments_of_udp_pass_whole() -> None:
    with peers.TAP.run() as network:
        names = network.namespaces
        receiver = names.in_host(sys.executable, "-c", RECEIVER)
        with subprocess.Popen(receiver, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            before = received_by(names.host, "tap0")
            subprocess.run(names.in_guest(sys.executable, "-c", SENDER), check=True)
            assert server.stdout.readline() == "{1400}\n"
        assert received_by(names.host, "tap0") - before < SEGMENTS / 2


def test_the_front_end_takes_no_offload_that_it_is_told_not_to() -> None:
    with peers.TAP_PLAIN.run() as network:
        check(CASES[0], network)


@pytest.mark.skipif(not is_possible(), reason="needs perf, and the right to use it")
def test_a_profile_tells_programs_apart() -> None:
    found = profiles.record(NetCase(load=Load.ECHO), peers.TAP, SECONDS)
    names = {share.program for share in found.shares}
    assert {profiles.DEVICE, profiles.DRIVER, ENDS} <= names
    # Each line of perf is rounded, and a busy machine has a thousand of them.
    assert 80 < sum(share.percent for share in found.shares) < 120


def test_a_load_that_fails_is_a_round_without_figures() -> None:
    with peers.VETH.run() as network:
        subprocess.run(
            ["ip", "-n", network.namespaces.guest, "route", "delete", "default"], check=True
        )
        found = rounds.once(NetCase(load=Load.ECHO), network, SECONDS)
    assert "cannot connect" in found.failure
    assert not found.counts


def test_a_network_that_carries_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.net.namespaces.DEADLINE_S", 0.1)
    before = left()

    @contextlib.contextmanager
    def start(namespaces: Namespaces, _: int) -> Iterator[Network]:
        yield Network(namespaces)

    unjoined = dataclasses.replace(peers.VETH, start=start)
    with pytest.raises(NetworkError, match="has not reached"), unjoined.run():
        pass
    assert left() == before


def test_a_device_that_is_not_there_fails_the_front_end() -> None:
    with pair() as namespaces:
        command = namespaces.in_guest(str(peers.FRONT_END.absolute()), "/nowhere.sock", "eth0")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot connect" in done.stderr

"""A user-mode network and its passt: start, end, a new start, and frames in between."""

from __future__ import annotations

import itertools
import os
import queue
import select
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.net.user import network as network_module
from services.devicehost.devices.net.user import process as process_module
from services.devicehost.devices.net.user.network import UserNetwork
from services.devicehost.devices.net.user.settings import UserSettings
from services.handshake.errors import FailedPreconditionError, UnavailableError
from services.handshake.options import NetOptions
from services.handshake.ports import PortKey, PortMapping, PortProtocol
from services.wire.virtio_net import HDR_F_DATA_VALID, HEADER_BYTES, MAX_FRAME_BYTES, NetHeader
from services.wire.virtio_net import HEADER as HEADER_STRUCT
from tests.support.descriptors import open_descriptors, open_fds
from tests.unit.devicehost.devices.net.user import fake_passt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAC = bytes.fromhex("525400123456")
OPTIONS = NetOptions(name="eth0", vm_id="6f1a2f5e-5f3e-4f53-9d5c-2b8f0a4f7c11", client_mac=MAC)
HEADER = bytes(HEADER_BYTES)
RECEIVED = HEADER_STRUCT.pack(*NetHeader(flags=HDR_F_DATA_VALID))
"""What comes from passt has its checksums."""
FRAME = bytes(range(60))
DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = open_fds()
    yield
    assert list(place.iterdir()) == []
    assert open_fds() == before
    assert open_descriptors(place) == []


class Network(UserNetwork):
    """A network that keeps what it says of its link."""

    def __init__(self, program: str) -> None:
        self.said: queue.Queue[tuple[bool, str]] = queue.Queue()
        super().__init__(UserSettings(), program, OPTIONS, lambda up, why: self.said.put((up, why)))

    def frame(self) -> bytes:
        """Sleep until a frame comes."""
        buffer = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES))
        while not (length := self.read(buffer)):
            assert select.select([self.read_fd], [], [], DEADLINE_S)[0]
        return bytes(buffer[:length])


@contextmanager
def running(program: str) -> Iterator[Network]:
    network = Network(program)
    try:
        yield network
    finally:
        network.close()


def refused(program: str) -> FailedPreconditionError:
    with pytest.raises(FailedPreconditionError) as raised:
        Network(program)
    return raised.value


def test_without_passt_the_package_is_named(tmp_path: Path) -> None:
    error = refused(str(tmp_path / "passt"))
    assert error.reason == "PASST_MISSING"
    assert "package passt" in error.message


def test_a_passt_that_lacks_an_option_is_too_old(tmp_path: Path) -> None:
    program = fake_passt.write(
        tmp_path / "passt", fake_passt.ECHO, help_text=fake_passt.HELP.replace("--dns-host", "")
    )
    error = refused(program)
    assert error.reason == "PASST_TOO_OLD"
    assert f"{program} has no --dns-host" in error.message
    assert "package passt" in error.message


def test_a_passt_that_cannot_be_run(tmp_path: Path) -> None:
    program = tmp_path / "passt"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    assert refused(str(program)).reason == "PASST_FAILED"


def test_a_passt_that_ends_at_once_has_its_last_words_quoted(tmp_path: Path) -> None:
    body = "sys.exit('Could not   create user namespace\\n')"
    error = refused(fake_passt.write(tmp_path / "passt", body))
    assert error.reason == "PASST_FAILED"
    assert error.message.endswith("ended with status 1: Could not create user namespace")


def test_a_passt_that_never_serves_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "START_S", 0.3)
    error = refused(fake_passt.write(tmp_path / "passt", "signal.pause()"))
    assert error.reason == "PASST_FAILED"
    assert "does not serve" in error.message


def test_a_very_talkative_passt_is_quoted_in_part(tmp_path: Path) -> None:
    body = "sys.stderr.write('x' * 100_000 + '\\n' + 'last\\n'); sys.exit(2)"
    error = refused(fake_passt.write(tmp_path / "passt", body))
    assert "last" in error.message
    assert len(error.message) < 2000


def test_passt_learns_the_guests_mac_address_before_the_guest_speaks(tmp_path: Path) -> None:
    body = "first = stream.recv(100); open(value('--pid'), 'w').write('1'); stream.sendall(first)"
    program = fake_passt.write(tmp_path / "passt", f"{body}; signal.pause()")
    with running(program) as network:
        frame = network.frame()[HEADER_BYTES:]
    assert frame == b"\xff" * 6 + MAC + b"\x88\xb5" + bytes(46)


def test_the_next_passt_learns_the_address_that_the_guest_has_used(tmp_path: Path) -> None:
    body = "first = stream.recv(100); open(value('--pid'), 'w').write('1'); stream.sendall(first)"
    program = fake_passt.write(tmp_path / "passt", f"{body}; stream.recv(100)")
    own = bytes.fromhex("02aabbccddee")
    with running(program) as network:
        assert network.frame()[HEADER_BYTES + 6 : HEADER_BYTES + 12] == MAC
        network.write([HEADER, bytes(3), bytes(3) + own + bytes(50)])
        assert not network.said.get(timeout=DEADLINE_S)[0]
        assert network.said.get(timeout=DEADLINE_S)[0]
        assert network.frame()[HEADER_BYTES + 6 : HEADER_BYTES + 12] == own


def test_frames_go_through_it_and_back(tmp_path: Path) -> None:
    with running(fake_passt.write(tmp_path / "passt", fake_passt.ECHO)) as network:
        for length in (14, 60, 65535):
            frame = os.urandom(length)
            network.write([HEADER, frame[:10], frame[10:]])
            while not network.flush():
                assert select.select([], [network.write_fd], [], DEADLINE_S)[1]
            assert network.frame() == RECEIVED + frame
        with pytest.raises(OSError, match="too long"):
            network.write([HEADER, bytes(65536)])
        assert network.said.empty()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("sys.exit('out of order')", "status 1: out of order"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("stream.sendall(b'\\0\\0\\0\\x0d'); stream.recv(1000)", "13 bytes"),
        ("stream.sendall(b'\\0\\1\\0\\0'); signal.pause()", "65536 bytes"),
        ("stream.shutdown(2); signal.pause()", "the stream was closed"),
    ],
    ids=["ends", "is killed", "too short", "too long, and stays", "closes, and stays"],
)  # fmt: skip
def test_it_is_started_again(tmp_path: Path, body: str, why: str) -> None:
    count = tmp_path / "starts"
    first = f"with open({str(count)!r}, 'a') as file: file.write('x')\n"
    first += f"if os.path.getsize({str(count)!r}) == 1:\n    ready(); stream.recv(10); {body}\n"
    with running(fake_passt.write(tmp_path / "passt", first + fake_passt.ECHO)) as network:
        network.write([HEADER, FRAME])
        buffer = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES))
        while network.said.empty():
            select.select([network.read_fd], [], [], 0.05)
            assert network.read(buffer) == 0
        up, said = network.said.get(timeout=DEADLINE_S)
        assert not up
        assert why in said
        assert network.said.get(timeout=DEADLINE_S)[0]
        network.write([HEADER, FRAME])
        assert network.frame() == RECEIVED + FRAME
    assert count.read_text() == "xx"


def test_without_a_link_frames_are_refused_and_reading_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(network_module, "LONGEST_PAUSE_S", 3600.0)
    body = "ready(); stream.recv(10)"
    with running(fake_passt.write(tmp_path / "passt", body)) as network:
        network.write([HEADER, FRAME])
        assert not network.said.get(timeout=DEADLINE_S)[0]
        with pytest.raises(OSError, match="down"):
            network.write([HEADER, FRAME])
        assert network.read(memoryview(bytearray(100))) == 0
        assert select.select([network.read_fd], [], [], 0) == ([], [], [])
        assert network.flush()
        began = time.monotonic()
    assert time.monotonic() - began < DEADLINE_S, "closing has waited for the pause"


def test_pauses_grow_and_are_bounded() -> None:
    pauses = [0.0]
    for _ in range(20):
        pauses.append(network_module._longer(pauses[-1]))
    assert pauses[1] == network_module.FIRST_PAUSE_S
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses[:9]))
    assert pauses[-1] == network_module.LONGEST_PAUSE_S


def test_a_passt_that_reads_nothing_does_not_hold_up_reading_or_closing(tmp_path: Path) -> None:
    body = "ready(); stream.sendall(b'\\0\\0\\0\\x0e' + b'f' * 14); signal.pause()"
    network = Network(fake_passt.write(tmp_path / "passt", body))
    try:
        while network.flush():
            network.write([HEADER, bytes(60_000)])
        assert network.frame() == RECEIVED + b"f" * 14
        assert not network.flush()
        began = time.monotonic()
    finally:
        network.close()
    assert time.monotonic() - began < DEADLINE_S


def test_a_passt_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_END_S", 0.2)
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready()\nwhile True: signal.pause()"
    with running(fake_passt.write(tmp_path / "passt", body)):
        pass


def test_a_passt_without_control_maps_no_ports_and_does_all_else(tmp_path: Path) -> None:
    with running(fake_passt.write(tmp_path / "passt", fake_passt.ECHO)) as network:
        with pytest.raises(FailedPreconditionError) as raised:
            network.ports.map(PortMapping(PortKey(PortProtocol.TCP, "", 0), 80))
        assert raised.value.reason == "PORT_FORWARD_UNSUPPORTED"
        assert "package passt" in raised.value.message
        assert network.ports.list() == ()
        network.write([HEADER, FRAME])
        assert network.frame() == RECEIVED + FRAME


CONTROLLED = """
control = socket.socket(socket.AF_UNIX)
control.bind(value("--conf-path"))
control.listen()
ready()
signal.pause()
"""


def test_a_pesto_that_gets_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.devicehost.devices.net.user.ports._PESTO_S", 0.3)
    help_text = f"{fake_passt.HELP} --conf-path"
    program = fake_passt.write(tmp_path / "passt", CONTROLLED, help_text=help_text)
    fake_passt.write(tmp_path / "pesto", "", help_text="")
    (tmp_path / "pesto").write_text("#!/bin/sh\nexec sleep 60\n")
    with running(program) as network:
        with pytest.raises(UnavailableError) as raised:
            network.ports.map(PortMapping(PortKey(PortProtocol.TCP, "", 0), 80))
        assert raised.value.reason == "USER_NETWORK_DOWN"
        assert network.ports.list() == ()


def test_a_change_that_is_in_doubt_starts_passt_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change was sent, and passt does not say that it has carried it out."""
    monkeypatch.setattr("services.devicehost.devices.net.user.ports._PESTO_S", 0.5)
    help_text = f"{fake_passt.HELP} --conf-path"
    program = fake_passt.write(tmp_path / "passt", CONTROLLED, help_text=help_text)
    (tmp_path / "pesto").write_text('#!/bin/sh\ncase "$1" in --*) ;; *) exec sleep 60 ;; esac\n')
    (tmp_path / "pesto").chmod(0o755)
    with running(program) as network:
        with pytest.raises(UnavailableError):
            network.ports.map(PortMapping(PortKey(PortProtocol.TCP, "", 0), 80))
        assert network.ports.list() == ()
        up, why = network.said.get(timeout=DEADLINE_S)
        assert not up
        assert "in doubt" in why


def test_a_passt_that_does_not_listen_has_its_rule_taken_back(tmp_path: Path) -> None:
    help_text = f"{fake_passt.HELP} --conf-path"
    program = fake_passt.write(tmp_path / "passt", CONTROLLED, help_text=help_text)
    journal = tmp_path / "journal"
    (tmp_path / "pesto").write_text(f'#!/bin/sh\necho "$1 $2 $3" >>{journal}\n')
    (tmp_path / "pesto").chmod(0o755)
    with running(program) as network:
        with pytest.raises(FailedPreconditionError) as raised:
            network.ports.map(PortMapping(PortKey(PortProtocol.UDP, "::1", 40_001), 80))
        assert raised.value.reason == "PORT_REFUSED"
        assert network.ports.list() == ()
    changes = [line for line in journal.read_text().splitlines() if line.startswith("--")]
    assert changes == ["--add --udp-ports ::1/40001:80", "--delete --udp-ports ::1/40001:80"]

"""`porthole device net --user`: a user-mode network in a process of its own, for any user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.wire import vhost_user as wire
from tests.support.front_end import RawFrontEnd
from tests.support.ordinary_user import A_USER, as_ordinary_user
from tests.support.passt import PASST, copy_passt, passt_processes
from tests.support.standalone import DEADLINE_S, Process
from tests.unit.devicehost.vhost_user.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Start = Callable[..., "Device"]

pytestmark = [pytest.mark.root, pytest.mark.passt]

ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Runs a program in a network namespace of its own."""


@pytest.fixture
def passt(run_dir: Path) -> str:
    """passt and pesto, where every user may run them."""
    place = run_dir / "passt"
    place.mkdir()
    run_dir.chmod(0o755)
    return str(copy_passt(place))


class Device(Process):
    """A `porthole device net --user`."""

    @property
    def passt(self) -> int:
        """The process id of its passt."""
        (pid,) = passt_processes(self.process.pid)
        return pid

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the network namespace of the device."""
        enter = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net"]
        return subprocess.run(
            [*enter, *command], capture_output=True, text=True, check=False, timeout=DEADLINE_S
        )


@pytest.fixture(params=[False, True], ids=["root", "ordinary user"])
def start(request: pytest.FixtureRequest, run_dir: Path, passt: str) -> Iterator[Start]:
    made: list[Device] = []

    def start(*flags: str) -> Device:
        sockets = run_dir / "sockets"
        sockets.mkdir()
        prefix: Sequence[str] = ALONE
        if request.param:
            os.chown(sockets, A_USER, A_USER)
            prefix = (*ALONE, *as_ordinary_user([]))
        arguments = ["net", f"--socket-path={sockets}/n.sock", "--user", f"--passt={passt}", *flags]
        made.append(Device(*arguments, prefix=prefix))
        return made[-1]

    yield start
    for device in made:
        device.kill()


def test_it_serves_and_ends_with_its_passt(start: Start) -> None:
    device = start(
        "--mac=02:00:00:00:00:07",
        "--client-ip=10.9.0.2/24",
        *("--port=8080:80", "--port=[::1]:53000:53000/udp"),
    )
    assert device.line.startswith("porthole device net ready on unix:")
    pid = device.passt
    owner = Path(f"/proc/{pid}").stat().st_uid
    assert owner != 0, "passt keeps root's rights"
    listening = device.inside("ss", "-Hltun").stdout
    assert "127.0.0.1:8080" in listening
    assert "[::1]:53000" in listening
    with RawFrontEnd(device.socket_path) as front_end:
        front_end.negotiate()
        config = front_end.ask(wire.Request.GET_CONFIG, wire.Config(0, 6, 0, bytes(6)).pack())
        assert bytes.fromhex("020000000007") in config
    code, log = device.end()
    assert code == 0, log
    assert "tcp 127.0.0.1:8080 is forwarded to port 80 of the guest" in log
    assert not Path(f"/proc/{pid}").exists()


def test_a_passt_does_not_outlive_a_device_that_is_killed(start: Start) -> None:
    device = start()
    pid = device.passt
    device.kill()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_sigterm_ends_it_in_order(start: Start) -> None:
    device = start("--persistent")
    pid = device.passt
    code, log = device.terminate()
    assert code == 0, log
    assert not Path(f"/proc/{pid}").exists()


def test_a_passt_that_is_killed_is_started_again(start: Start) -> None:
    device = start("--persistent", "--port=8080:8080")
    pid = device.passt
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: [pid] != passt_processes(device.process.pid) != [])
    assert eventually(lambda: "127.0.0.1:8080" in device.inside("ss", "-Hltn").stdout)
    code, log = device.terminate()
    assert code == 0
    assert "SIGKILL" in log


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "--user"),
        (["--user", "--tap=tap0"], 2, "--user"),
        (["--tap=tap0", "--dns=9.9.9.9"], 2, "--dns"),
        (["--tap=tap0", "--mtu=9000"], 2, "--mtu"),
        (["--user", "--mtu=65536"], 2, "USER_NETWORK_VALUE"),
        (["--user", "--queues=2"], 2, "USER_NETWORK_VALUE"),
        (["--user", "--dns=nonsense"], 2, "USER_NETWORK_VALUE"),
        (["--user", "--limit-tx=bps=999"], 2, "RATE_LIMIT_VALUE"),
        (["--user", "--limit-rx=bits=9"], 2, "--limit-rx"),
        (["--user", "--spoofing=refuse"], 2, "give --mac as well"),
        (["--user", "--client-ip=nonsense"], 2, "OPTION_VALUE"),
        (["--user", "--port=http"], 2, "PORT:GUEST_PORT"),
        (["--user", "--port=80:http"], 2, "--port"),
        (["--user", "--port=80:80/sctp"], 2, "tcp or udp"),
        (["--user", "--port=[::1]:99999:1/udp"], 2, "is no port"),
        (["--user", "--port=localhost:8080:80"], 2, "PORT_ADDRESS"),
        (["--user", "--port=1:1"], 3, "PORT_NOT_PERMITTED"),
        (["--user", "--port=8080:1", "--port=8080:80"], 3, "PORT_EXISTS"),
        (["--user", "--passt=/no/such/passt"], 3, "PASST_MISSING"),
        (["--user", "--gateway-ip=0.0.0.0"], 3, "PASST_FAILED"),
        (["--user", "--bridge=br0"], 2, "--bridge goes with --tap"),
        (["--tap=tap0", "--bridge=br7"], 3, "BRIDGE_UNAVAILABLE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_and_a_code(
    run_dir: Path, flags: list[str], code: int, said: str
) -> None:
    program = [sys.executable, "-m", "services.cli.main", "device", "net"]
    result = subprocess.run(
        [*ALONE, *program, f"--socket-path={run_dir}/s.sock", "--log-level=error", *flags],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env={**os.environ, "PORTHOLE_PASST": str(PASST)},
    )
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(run_dir.iterdir()) == []

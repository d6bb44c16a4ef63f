"""`porthole run`: commands in a Linux guest whose root is the host's.

The kernel is that of `make kernel`, the initramfs that of `make guest-image`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import select
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import PORTHOLE
from tests.support.ordinary_user import A_USER, as_ordinary_user, copy_checkout
from tests.support.passt import PASST

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.guest_image, pytest.mark.guest_kernel]

LIMIT_S = 120.0
"""The guest is emulated, maybe beside other guests."""

BIG_BYTES = 16 << 20
BIG_S = 240.0
MARK = "PORTHOLE_TEST_MARK"


class Runner:
    """Runs `porthole run`, and finds what it leaves behind.

    Attributes:
        trace: The trace of what was run.
        temporary: The directory in which temporary files of the command are.
    """

    def __init__(self, directory: Path) -> None:
        self.mark = str(uuid.uuid4())
        self.trace = directory / "trace.jsonl"
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.temporary.chmod(0o1777)
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "PORTHOLE_QEMU_ACCEL": "tcg",
            "PORTHOLE_BOOT_DEADLINE_S": "55",
            "PORTHOLE_CAPABILITIES_DEADLINE_S": "55",
        }

    def line(self, *words: str, ordinary: bool = False) -> list[str]:
        program = [*PORTHOLE, "run", *words]
        return as_ordinary_user(program) if ordinary else program

    def start(self, *words: str, ordinary: bool = False, **streams: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            self.line(*words, ordinary=ordinary), env=self.environment, **{**pipes, **streams}
        )
        self._started.append(process)
        return process

    def run(
        self, *words: str, ordinary: bool = False, stdin: bytes = b"", **more: Any
    ) -> tuple[int, bytes, bytes]:
        """Run a command to its end; return its exit code and what it wrote. Nothing may be left."""
        process = self.start(*words, ordinary=ordinary, stdin=subprocess.PIPE, **more)
        out, err = process.communicate(stdin, timeout=LIMIT_S)
        assert b"Traceback" not in err, err.decode()
        self.assert_nothing_left()
        return process.returncode, out, err

    def processes(self) -> dict[int, str]:
        """Return the command lines of the processes that were started by this."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
                variables = path.joinpath("environ").read_bytes()
                # QEMU gets few of the owner's variables, and paths in the directory of this.
                if f"{MARK}={self.mark}".encode() in variables or str(self.temporary) in line:
                    found[int(path.name)] = line
        return found

    def until_no_process(self) -> None:
        limit_s = time.monotonic() + 30
        while self.processes() and time.monotonic() < limit_s:
            time.sleep(0.1)
        assert self.processes() == {}

    def assert_nothing_left(self) -> None:
        assert self.processes() == {}
        assert list(self.temporary.iterdir()) == []

    def close(self) -> None:
        """End what a test that failed has left, and close the pipes."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(LIMIT_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def runner() -> Iterator[Runner]:
    # An ordinary user may not enter pytest's own directory.
    with tempfile.TemporaryDirectory(prefix="ph-run-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        made = Runner(path)
        yield made
        made.close()


@pytest.fixture
def shared(runner: Runner) -> Path:
    """A directory with a file in it, which anybody may write to."""
    path = runner.trace.parent / "shared"
    path.mkdir()
    (path / "hello").write_text("hello from the host\n")
    path.chmod(0o777)
    return path


def until(process: subprocess.Popen[bytes], words: bytes) -> bytes:
    """Read what a process writes until it has these words."""
    assert process.stdout is not None
    said = b""
    limit_s = time.monotonic() + LIMIT_S
    while words not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, limit_s - time.monotonic()))
        assert ready, said
        data = os.read(process.stdout.fileno(), 65536)
        assert data, (said, process.communicate())
        said += data
    return said


def test_an_ordinary_user_runs_a_command_in_a_checkout_of_their_own(runner: Runner) -> None:
    checkout = copy_checkout(runner.trace.parent / "checkout")
    runner.environment["PYTHONPATH"] = f"{checkout}:{checkout / 'clients/python'}"
    del runner.environment["PORTHOLE_QEMU_ACCEL"]
    script = "ls /work && uname -r && cat /proc/mounts && id -u && pwd"
    code, out, err = runner.run(
        "--share", ".:/work", "--", "sh", "-c", script, ordinary=True, cwd=checkout
    )
    assert code == 0, err.decode()
    lines = out.decode().splitlines()
    there = sorted(path.name for path in checkout.iterdir() if path.name[0] != ".")
    assert sorted(lines[: len(there)]) == there
    assert lines[len(there)].endswith("-porthole")
    assert any(line.startswith("root / overlay ") for line in lines)
    assert any(line.startswith("share0 /work virtiofs ") for line in lines)
    uid = A_USER if os.geteuid() == 0 else os.geteuid()
    assert lines[-2:] == [str(uid), str(checkout)]
    # Without KVM one line says so.
    assert err == b"" or re.fullmatch(rb"guests run by emulation \(TCG\).*\n", err)


@pytest.mark.parametrize(
    ("kind", "isolation"), [("wsl2", "shared-ram"), ("wslc", "strict")], ids=["wsl2", "wslc-strict"]
)
def test_what_is_written_stays_in_memory_except_in_a_share(
    runner: Runner, shared: Path, kind: str, isolation: str
) -> None:
    new, old = Path("/etc/porthole-run-test"), runner.trace.parent / "old"
    old.touch()
    script = (
        f"echo x >{new} && cat {new} && rm {old} && cp /w/hello /w/copy"
        " && ! touch /r/new 2>/dev/null && ls /r/deep/w && nproc && dmesg"
    )
    flags = ["--kind", kind, "--isolation", isolation, "--user", "root"]
    flags += ["--cpus", "2", "--memory", "1280M"]
    shares = ["--share", f"{shared}:/w"]
    shares += ["--share", f"{shared}:/r:ro", "--share", f"{shared}:/r/deep/w"]
    (shared / "deep/w").mkdir(parents=True)
    runner.environment["PORTHOLE_TRACE_FILE"] = str(runner.trace)
    code, out, err = runner.run(*flags, *shares, "--", "sh", "-c", script)
    assert (code, err) == (0, b"")
    assert out.decode().splitlines()[:5] == ["x", "copy", "deep", "hello", "2"]
    pools = re.findall(rb"virtio_swiotlb: pool .* for 0000:", out)
    assert len(pools) == (8 if isolation == "strict" else 0)
    assert (shared / "copy").read_text() == "hello from the host\n"
    assert old.exists()
    assert not new.exists()
    verify = [*PORTHOLE, "handshake", "verify", str(runner.trace)]
    subprocess.run(verify, check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize(
    ("program", "code"), [("no-such-program", 127), ("hello", 126)], ids=["none", "no-program"]
)
def test_a_program_that_cannot_be_run_is_named(
    runner: Runner, shared: Path, program: str, code: int
) -> None:
    name = str(shared / program) if (shared / program).exists() else program
    found, out, err = runner.run("--", name)
    assert (found, out) == (code, b"")
    assert err.decode().startswith(f"error: {name}: ")
    assert err.count(b"\n") == 1


def test_streams_stay_apart_and_every_byte_passes(runner: Runner, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * (BIG_BYTES >> 20)
    (tmp_path / "in").write_bytes(content)
    script = "env >&2; test -t 0 || echo no terminal >&2; cat"
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        process = runner.start(
            *("--env", "MINE=1", "--", "sh", "-c", script), stdin=source, stdout=sink
        )
        _, err = process.communicate(timeout=BIG_S)
    assert process.returncode == 0, err
    assert (tmp_path / "out").read_bytes() == content
    *lines, last = err.decode().splitlines()
    assert last == "no terminal"
    variables = dict(line.split("=", 1) for line in lines)
    assert variables["MINE"] == "1"
    assert variables["HOME"] == pwd.getpwuid(os.geteuid()).pw_dir
    assert MARK not in variables
    runner.assert_nothing_left()


def test_a_reader_that_has_enough_ends_what_writes(runner: Runner) -> None:
    process = runner.start("--", "sh", "-c", "yes; echo ended with $? >&2; exec yes")
    assert until(process, b"y\n").startswith(b"y\n")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(LIMIT_S) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b"ended with 141\n"
    runner.assert_nothing_left()


def test_signals_reach_a_command_which_ends_even_if_it_ignores_them(runner: Runner) -> None:
    script = "trap '' TERM HUP; trap 'echo got it' USR1; echo ready; while :; do sleep 0.1; done"
    process = runner.start("--", "sh", "-c", script)
    until(process, b"ready")
    process.send_signal(signal.SIGUSR1)
    until(process, b"got it")
    process.send_signal(signal.SIGHUP)
    assert process.wait(LIMIT_S) == 128 + signal.SIGHUP
    runner.assert_nothing_left()


@pytest.mark.parametrize("delay_s", [1.0, 3.0])
def test_ctrl_c_while_it_boots_leaves_nothing(runner: Runner, delay_s: float) -> None:
    process = runner.start("--", "sleep", "1000")
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGINT
    runner.assert_nothing_left()


def test_a_lost_guest_is_named_with_its_cause(runner: Runner) -> None:
    process = runner.start("--", "sh", "-c", "echo ready; sleep 1000")
    until(process, b"ready")
    [qemu] = [
        pid for pid, line in runner.processes().items() if "qemu-system" in line.split(" ")[0]
    ]
    os.kill(qemu, signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 125
    assert "QEMU ended with signal SIGKILL" in err.decode()
    runner.assert_nothing_left()


def test_a_missing_kernel_is_one_line_with_what_makes_it(runner: Runner) -> None:
    code, out, err = runner.run("--kernel", "/nowhere/vmlinux", "--", "true")
    assert (code, out) == (125, b"")
    assert err.count(b"\n") == 1
    assert "/nowhere/vmlinux" in err.decode()
    assert "make kernel guest-image" in err.decode()


def test_a_missing_qemu_is_one_line_with_its_package(runner: Runner) -> None:
    runner.environment["PORTHOLE_QEMU"] = "no-such-qemu"
    code, _, err = runner.run("--", "true")
    assert code == 125
    assert err.count(b"\n") == 1
    assert "qemu-system-x86" in err.decode()


def test_too_little_memory_is_named_with_its_bounds(runner: Runner) -> None:
    code, _, err = runner.run("--memory", "1M", "--", "true")
    assert code == 125
    assert "1048576" in err.decode()


def taps() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


@pytest.mark.tap
def test_adapters_are_there_and_end_even_with_a_command_that_is_killed(runner: Runner) -> None:
    before = taps()
    script = "ls /sys/class/net; echo ready; sleep 1000"
    process = runner.start("--net", "tap", "--", "sh", "-c", script)
    assert {b"eth0", b"loopback0"} < set(until(process, b"ready").split())
    assert len(taps() - before) == 2
    assert any("qemu-system" in line for line in runner.processes().values())
    process.kill()
    process.wait(LIMIT_S)
    runner.until_no_process()
    assert taps() == before
    left = {path.name for path in runner.temporary.glob("**/*") if not path.is_dir()}
    assert left == {"up.lock"}


@pytest.mark.passt
def test_an_ordinary_user_has_a_network_with_a_name_server_and_sees_its_link_go_and_come_back(
    runner: Runner,
) -> None:
    runner.environment["PORTHOLE_PASST"] = str(PASST)
    before = taps()
    process = runner.start("--net", "user", "--", "sh", "-c", SEES_LINK, ordinary=True)
    lines = until(process, b"ready").decode().splitlines()
    assert {"eth0", "loopback0"} < set(lines)
    assert lines.count("65520") == 2, "as long as passt's frames may be"
    assert [line.split()[0] for line in lines if line.split()[1:2] == ["00000000"]] == ["eth0"]
    assert any(line.startswith("nameserver 10.231.0.") for line in lines)
    assert taps() == before
    for pid, line in runner.processes().items():
        if line.startswith(str(PASST)):
            os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err.decode()
    assert out.decode().split() == ["gone", "back"]
    runner.assert_nothing_left()


SEES_LINK = """
cd /sys/class/net/eth0
until [ "$(cat carrier)" = 1 ]; do sleep 0.1; done
ls /sys/class/net; cat /sys/class/net/*/mtu /proc/net/route /etc/resolv.conf
before=$(cat carrier_down_count)
echo ready
until [ "$(cat carrier_down_count)" -gt "$before" ]; do sleep 0.1; done
echo gone
until [ "$(cat carrier)" = 1 ]; do sleep 0.1; done
echo back
"""


def test_a_network_that_cannot_be_had_is_named(runner: Runner) -> None:
    runner.environment["PORTHOLE_PASST"] = "no-such-passt"
    code, _, err = runner.run("--net", "user", "--", "true")
    assert code == 125
    assert "PASST_MISSING" in err.decode()
    assert "[NETWORKING_FALLBACK]" in err.decode()


class Screen:
    """A terminal, at whose other end a command runs."""

    def __init__(self, runner: Runner, *words: str) -> None:
        self.fd, theirs = os.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.process = runner.start(*words, stdin=theirs, stdout=theirs, stderr=theirs)
        self.said = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def until(self, words: bytes) -> None:
        limit_s = time.monotonic() + LIMIT_S
        while words not in self.said:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, limit_s - time.monotonic()))
            assert ready, self.said
            self.said += os.read(self.fd, 65536)

    def end(self) -> int:
        code = self.process.wait(LIMIT_S)
        assert termios.tcgetattr(self.theirs) == self.before
        os.close(self.theirs)
        os.close(self.fd)
        return code


def test_a_command_has_the_terminal(runner: Runner) -> None:
    script = (
        "stty size; tty; read line; echo got:$line; stty size;"
        " trap 'echo interrupted; exit 5' INT; echo armed; while :; do sleep 0.1; done"
    )
    screen = Screen(runner, "--", "sh", "-c", script)
    screen.until(b"24 80")
    screen.until(b"/dev/pts/0")
    screen.resize(50, 132)
    screen.process.send_signal(signal.SIGWINCH)
    time.sleep(1.0)
    screen.type(b"typed\r")
    screen.until(b"got:typed")
    screen.until(b"50 132")
    screen.until(b"armed")
    screen.type(b"\x03")
    screen.until(b"interrupted")
    assert screen.end() == 5
    runner.assert_nothing_left()


def test_three_keys_end_a_command_that_nothing_else_ends(runner: Runner) -> None:
    screen = Screen(runner, "--", "sh", "-c", "trap '' INT QUIT TERM HUP; echo ready; sleep 1000")
    screen.until(b"ready")
    screen.type(b"\x1d\x1d\x1d")
    assert screen.end() == 137
    runner.assert_nothing_left()

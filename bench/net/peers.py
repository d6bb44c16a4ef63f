"""The programs between the two ends: our devices, and the networks that they are compared with.

Owns how each is started and ended. Must not know loads.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.net.cases import Load
from bench.net.namespaces import (
    DEADLINE_S,
    GATEWAY,
    GUEST,
    INTERFACE,
    Namespaces,
    NetworkError,
    ip,
    pair,
)
from services.devicehost.fastpath import SWITCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FRONT_END: Final = Path("build/bench/net_front_end")
PASST: Final = Path("build/passt/passt")
PASTA_PROGRAM: Final = Path("build/passt/pasta")
_NEEDS_PASST: Final = (str(PASST), "passt (make passt)")
_NEEDS_PASTA: Final = (str(PASTA_PROGRAM), "pasta (make passt)")
SLIRP: Final = "slirp4netns"
QEMU: Final = Path(".guest/qemu-10/usr/bin/qemu-system-x86_64")
"""Debian 12's own, 7.2, carries no TCP stream for longer than a moment."""
POOL: Final = f"0x4100_0000,{160 << 20}".replace("_", "")
"""Pool of the front-end: RAM_GPA + POOL_AT of ram.h, and POOL_BYTES of adapter.c."""
_PORTHOLE: Final = Path(sys.executable).with_name("porthole")
_TAP: Final = "tap0"
"""Our back end's interface, in the host's namespace."""
ETHERNET_MTU: Final = 1500
LARGEST_MTU: Final = 65520
"""What passt and slirp4netns are fastest with."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network that carries packets.

    Attributes:
        namespaces: Its two ends.
        device: Processes that stand in for the device or network, by id.
        front_end: Those that stand in for the guest's driver.
    """

    namespaces: Namespaces
    device: tuple[int, ...] = ()
    front_end: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of network.

    Attributes:
        name: Its name in tables.
        mtu: Bytes of payload per frame.
        start: Starts it between two namespaces.
        needs: Programs that this machine may lack, each with what provides it.
        loads: The loads that it is there for.
        alone: Whether it takes CPU time while nobody sends, so that it is set up for each
            measurement of its own.
    """

    name: str
    mtu: int
    start: Callable[[Namespaces, int], contextlib.AbstractContextManager[Network]]
    needs: tuple[tuple[str, str], ...] = ()
    loads: frozenset[Load] = frozenset(Load)
    alone: bool = False

    @property
    def missing(self) -> str:
        """What this machine lacks; empty: nothing."""
        return next((what for program, what in self.needs if shutil.which(program) is None), "")

    @contextlib.contextmanager
    def run(self) -> Iterator[Network]:
        """Set it up with namespaces of its own; both are gone at the end.

        Raises:
            NetworkError: It does not start, or carries nothing.
        """
        with pair() as namespaces, self.start(namespaces, self.mtu) as network:
            namespaces.await_path()
            yield network


@contextlib.contextmanager
def _process(command: list[str], log: Path, *fds: int) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the end; its stderr goes to `log`."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=fds,
            text=True,
        )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _said(process: subprocess.Popen[str], log: Path) -> str:
    """Return the first line that a program prints.

    Raises:
        NetworkError: It ended before, or said nothing for DEADLINE_S.
    """
    stdout = process.stdout
    if stdout is None or not select.select([stdout], [], [], DEADLINE_S)[0]:
        raise NetworkError(f"{process.args!r} is not ready after {DEADLINE_S:g} s")
    line = stdout.readline()
    if not line:
        raise NetworkError(f"{process.args!r} ended: {log.read_text().strip()}")
    return line


def _await_pid(path: Path, process: subprocess.Popen[str], log: Path) -> None:
    """Wait until passt has written its id, once it serves; the file and its socket come before."""
    end = time.monotonic() + DEADLINE_S
    while not path.exists() or not path.stat().st_size:
        if process.poll() is not None or time.monotonic() > end:
            raise NetworkError(f"no {path.name}: {log.read_text().strip()}")
        time.sleep(0.01)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as name:
        yield Path(name)


@contextlib.contextmanager
def _driver(
    namespaces: Namespaces, directory: Path, socket: str, mtu: int, *options: str, pairs: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """Attach the front-end, which joins a device to the guest's interface."""
    kind = ["vnet_hdr", *(["multi_queue"] if pairs > 1 else [])]
    ip("-n", namespaces.guest, "tuntap", "add", INTERFACE, "mode", "tap", *kind)
    namespaces.configure_guest(mtu)
    command = namespaces.in_guest(
        *(str(FRONT_END.absolute()), "--pairs", str(pairs), *options, socket, INTERFACE)
    )
    log = directory / "front_end.log"
    with _process(command, log) as process:
        _said(process, log)
        yield process


def _ours(
    *options: str, native: bool = True, user: bool = False, pairs: int = 1
) -> Callable[[Namespaces, int], contextlib.AbstractContextManager[Network]]:
    @contextlib.contextmanager
    def start(namespaces: Namespaces, mtu: int) -> Iterator[Network]:
        with _directory() as directory:
            socket, log = directory / "device.sock", directory / "device.log"
            backend = (
                *("--user", "--passt", str(PASST.absolute()), "--mtu", str(mtu)),
                *("--client-ip", f"{GUEST}/24", "--gateway-ip", GATEWAY),
            )
            serve = [
                *("env", f"{SWITCH}={int(native)}", str(_PORTHOLE), "device", "net"),
                *("--socket-path", str(socket), "--swiotlb", POOL),
                *(backend if user else ("--tap", _TAP, "--queues", str(pairs))),
            ]
            with _process(namespaces.in_host(*serve), log) as device:
                _said(device, log)
                if not user:
                    namespaces.configure_gateway(_TAP)
                driven = _driver(namespaces, directory, str(socket), mtu, *options, pairs=pairs)
                with driven as driver:
                    yield Network(namespaces, (device.pid, *_children(device.pid)), (driver.pid,))

    return start


def _children(pid: int) -> tuple[int, ...]:
    """Return the processes that a process has started, and theirs."""
    found: tuple[int, ...] = ()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += (child, *_children(child))
    return found


@contextlib.contextmanager
def _veth(namespaces: Namespaces, mtu: int) -> Iterator[Network]:
    ends = ("type", "veth", "peer", "name", INTERFACE, "netns", namespaces.guest)
    ip("-n", namespaces.host, "link", "add", "veth0", *ends)
    namespaces.configure_gateway("veth0")
    namespaces.configure_guest(mtu)
    yield Network(namespaces)


_ADDRESSES: Final = ("-4", "-a", GUEST, "-n", "24", "-g", GATEWAY, "-D", "none", "-S", "none")


@contextlib.contextmanager
def _passt(namespaces: Namespaces, mtu: int) -> Iterator[Network]:
    with _directory() as directory:
        socket, log = directory / "passt.sock", directory / "passt.log"
        ready = directory / "pid"
        command = namespaces.in_host(
            *(str(PASST.absolute()), "--foreground", "--quiet", "--vhost-user", "--runas", "0"),
            *("--pid", str(ready), "--socket", str(socket), "--mtu", str(mtu), *_ADDRESSES),
        )
        with _process(command, log) as passt:
            _await_pid(ready, passt, log)
            with _driver(namespaces, directory, str(socket), mtu) as driver:
                yield Network(namespaces, (passt.pid,), (driver.pid,))


@contextlib.contextmanager
def _qemu_stream(namespaces: Namespaces, mtu: int) -> Iterator[Network]:
    """Join the interface of the guest to a passt by the stream socket and the hub of QEMU."""
    with _directory() as directory:
        socket, log = directory / "passt.sock", directory / "passt.log"
        ready = directory / "pid"
        serve = namespaces.in_host(
            *(str(PASST.absolute()), "--foreground", "--quiet", "--runas", "0"),
            *("--pid", str(ready), "--socket", str(socket), "--mtu", str(mtu), *_ADDRESSES),
        )
        ip("-n", namespaces.guest, "tuntap", "add", INTERFACE, "mode", "tap")
        namespaces.configure_guest(mtu)
        join = namespaces.in_guest(
            *(str(QEMU.absolute()), "-machine", "none", "-nodefaults", "-display", "none"),
            *("-netdev", f"tap,id=guest,ifname={INTERFACE},script=no,downscript=no,vnet_hdr=off"),
            *("-netdev", f"stream,id=passt,server=off,addr.type=unix,addr.path={socket}"),
            *("-netdev", "hubport,id=one,hubid=0,netdev=guest"),
            *("-netdev", "hubport,id=other,hubid=0,netdev=passt"),
        )
        with _process(serve, log) as passt:
            _await_pid(ready, passt, log)
            with _process(join, directory / "qemu.log") as qemu:
                yield Network(namespaces, (passt.pid, qemu.pid))


@contextlib.contextmanager
def _pasta(namespaces: Namespaces, mtu: int) -> Iterator[Network]:
    with _directory() as directory:
        pid_file, log = directory / "pid", directory / "pasta.log"
        command = namespaces.in_host(
            *(
                str(PASTA_PROGRAM.absolute()),
                "--foreground",
                "--quiet",
                "--runas",
                "0",
                "--config-net",
            ),
            *("--pid", str(pid_file), "--ns-ifname", INTERFACE, "--mtu", str(mtu), *_ADDRESSES),
            *("-t", "none", "-u", "none", "-T", "none", "-U", "none"),
            *("--netns", str(namespaces.guest_path())),
        )
        with _process(command, log) as pasta:
            _await_pid(pid_file, pasta, log)
            yield Network(namespaces, (pasta.pid,))


@contextlib.contextmanager
def _slirp(namespaces: Namespaces, mtu: int) -> Iterator[Network]:
    with _directory() as directory:
        log = directory / "slirp.log"
        ready, ready_of_slirp = os.pipe()
        command = namespaces.in_host(
            *(SLIRP, "--configure", f"--mtu={mtu}", f"--ready-fd={ready_of_slirp}"),
            *("--netns-type=path", str(namespaces.guest_path()), INTERFACE),
        )
        try:
            with _process(command, log, ready_of_slirp) as slirp:
                os.close(ready_of_slirp)
                if not os.read(ready, 1):
                    raise NetworkError(f"slirp4netns: {log.read_text().strip()}")
                yield Network(namespaces, (slirp.pid,))
        finally:
            os.close(ready)


_WAITING: Final = frozenset(Load) - {Load.TCP, Load.UDP}
"""Loads whose ends wait for each other."""

TAP: Final = Peer("tap", ETHERNET_MTU, _ours())
TAP_PAIRS: Final = Peer(
    "tap, 2 pairs", ETHERNET_MTU, _ours(pairs=2), loads=frozenset({Load.TCP, Load.HTTP})
)
TAP_PLAIN: Final = Peer("tap, no offloads", ETHERNET_MTU, _ours("--no-offloads"))
TAP_PYTHON: Final = Peer("tap, python", ETHERNET_MTU, _ours(native=False))
USER: Final = Peer("user", LARGEST_MTU, _ours(user=True), (_NEEDS_PASST,))
USER_POLLING: Final = Peer(
    "user, polling driver",
    LARGEST_MTU,
    _ours("--polling", user=True),
    (_NEEDS_PASST,),
    loads=_WAITING,
    alone=True,
)
VETH: Final = Peer("veth", ETHERNET_MTU, _veth)
VHOST_USER: Final = Peer("passt, vhost-user", LARGEST_MTU, _passt, (_NEEDS_PASST,))
QEMU_STREAM: Final = Peer(
    "QEMU's stream socket",
    LARGEST_MTU,
    _qemu_stream,
    (_NEEDS_PASST, (str(QEMU), "QEMU 10 (make guest)")),
)
PASTA: Final = Peer("pasta", LARGEST_MTU, _pasta, (_NEEDS_PASTA,))
SLIRP4NETNS: Final = Peer(SLIRP, LARGEST_MTU, _slirp, ((SLIRP, SLIRP),))
PEERS: Final = (
    *(TAP, TAP_PAIRS, TAP_PLAIN, TAP_PYTHON, USER, USER_POLLING),
    *(VETH, VHOST_USER, QEMU_STREAM, PASTA, SLIRP4NETNS),
)


def versions() -> dict[str, str]:
    """Ask the programs of others, and iperf3, for their versions."""
    found = {}
    for program in (str(PASST), str(QEMU), SLIRP, "iperf3"):
        if shutil.which(program):
            said = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=True
            ).stdout
            name, _, version = said.partition("\n")[0].partition(" ")
            found[name] = version.removeprefix("emulator ").removeprefix("version ")
    return found

"""The programs that are measured: our device in its variants, and virtiofsd.

Owns how each is started and ended. Each virtiofsd runs in its fastest setting that works
(docs/benchmarks/README.md). Must not know cases.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from bench.front_end import POOL
from services.devicehost import fastpath
from services.devicehost.fastpath import SWITCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

C_VIRTIOFSD: Final = Path("/usr/lib/qemu/virtiofsd")
RUST_VIRTIOFSD: Final = Path("build/bench/virtiofsd/run")
STOP_DEADLINE_S: Final = 30.0
OTHER_DESCRIPTORS: Final = 1000
"""Upper bound on the descriptors that a virtiofsd has open besides those of files."""
BEFORE: Final = ", before"
"""Suffix of the name of a target that belongs to another checkout."""
_PORTHOLE: Final = Path(sys.executable).with_name("porthole")


@dataclass(frozen=True, slots=True)
class Place:
    """The surroundings of a device.

    Attributes:
        run_dir: Directory for its sockets.
        shared_dir: Directory that it shares.
        cpus: CPUs that its threads may use; empty: all.
    """

    run_dir: Path
    shared_dir: Path
    cpus: tuple[int, ...] = ()

    def pin(self, command: Sequence[str]) -> list[str]:
        """Confine a command to the CPUs."""
        pinned = ["taskset", "-c", ",".join(map(str, self.cpus))] if self.cpus else []
        return [*pinned, *command]


@dataclass(frozen=True, slots=True)
class Running:
    """A process that serves devices, until `close`.

    Attributes:
        process: The process. It ends when its standard input is closed, or on SIGTERM when it has
            none. Its id is that of the program itself: taskset replaces itself by the program.
        sockets: Paths of its devices' sockets.
    """

    process: subprocess.Popen[str]
    sockets: list[str]

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Target:
    """A program that serves one virtio-fs device on a socket that it inherits.

    Attributes:
        name: Its name in tables.
        command: Its command line without the socket; `{shared_dir}` and `{queues}` are filled in.
        environment: Variables that are added to ours.
        max_queues: Most request queues that it can have.
        serves_again: Whether the process outlives a front-end.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    max_queues: int = 1
    serves_again: bool = False

    def start(self, place: Place, queues: int = 1) -> Running:
        """Start it. A front-end may connect at once, and then waits until the program is ready."""
        path = place.run_dir / "device.sock"
        path.unlink(missing_ok=True)
        words = [word.format(shared_dir=place.shared_dir, queues=queues) for word in self.command]
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            (place.run_dir / "device.log").open("w") as log,
        ):
            listener.bind(str(path))
            listener.listen(1)
            process = subprocess.Popen(
                [*place.pin(words), f"--fd={listener.fileno()}"],
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )
        return Running(process, [str(path)])


def _porthole(name: str, *options: str, native: bool, porthole: Path = _PORTHOLE) -> Target:
    return Target(
        name,
        (
            *(str(porthole), "device", "fs", "--persistent"),
            *("--shared-dir", "{shared_dir}", "--queues", "{queues}", *options),
        ),
        environment={} if native else {SWITCH: "0"},
        max_queues=8,
        serves_again=True,
    )


def of_guest(base: int, size_bytes: int) -> list[Target]:
    """Return our device: confined to a guest's pool, by windows, and with all memory."""
    native = has_native()
    return [
        _porthole("pool", "--swiotlb", f"0x{base:x},{size_bytes}", native=native),
        _porthole("windows", "--memory", "windows", native=native),
        _porthole("whole memory", "--memory", "whole", native=native),
    ]


NATIVE: Final = _porthole("native", "--swiotlb", POOL, native=True)
ROOT: Final = _porthole("root", "--readonly", native=True)
"""Serves a Linux guest its programs, and is not measured."""
NATIVE_WINDOWS: Final = _porthole("native, windows", "--memory", "windows", native=True)
NATIVE_WHOLE: Final = _porthole("native, whole memory", "--memory", "whole", native=True)
PYTHON: Final = _porthole("python", "--swiotlb", POOL, native=False)
PYTHON_WINDOWS: Final = _porthole("python, windows", "--memory", "windows", native=False)
PYTHON_WHOLE: Final = _porthole("python, whole memory", "--memory", "whole", native=False)
C: Final = Target(
    "virtiofsd (C)",
    (str(C_VIRTIOFSD), "-o", "source={shared_dir}", "-o", "cache=auto", "-o", "sandbox=chroot"),
)
RUST: Final = Target(
    "virtiofsd (Rust)",
    (
        *(str(RUST_VIRTIOFSD), "--shared-dir", "{shared_dir}", "--cache", "auto"),
        *("--sandbox", "none", "--seccomp", "none", "--thread-pool-size", "0"),
    ),
)


def porthole_of(checkout: Path) -> Path:
    """Return the path of a checkout's `porthole`, which `make setup` installs there."""
    return checkout.absolute() / ".venv/bin/porthole"


def before(checkout: Path) -> list[tuple[Target, Target]]:
    """Pair our devices behind a pool with the same devices of another checkout."""
    porthole = porthole_of(checkout)
    pairs = []
    for target in (*([NATIVE] if has_native() else []), PYTHON):
        other = _porthole(
            *(target.name + BEFORE, "--swiotlb", POOL),
            native=target is not PYTHON,
            porthole=porthole,
        )
        pairs.append((target, other))
    return pairs


_VIRTIOFSDS: Final = ((C, C_VIRTIOFSD), (RUST, RUST_VIRTIOFSD))


def virtiofsds(files: int = 0) -> list[Target]:
    """List the virtiofsd programs of this machine, set up for this number of known files.

    The C one needs a descriptor for each known file, and is left out if it may not open so many.
    """
    found = [target for target, program in _VIRTIOFSDS if os.access(program, os.X_OK)]
    if files + OTHER_DESCRIPTORS < resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        return found
    return [target for target in found if target is RUST]


def start_host(place: Place, tokens: Sequence[str], *, native: bool) -> Running:
    """Start a device host (serve_fs.py) with a device for each token, "0xBASE,SIZE"."""
    command = [
        *(sys.executable, "-m", "bench.serve_fs"),
        *("--run-dir", str(place.run_dir), "--shared-dir", str(place.shared_dir)),
        *(f"--token=swiotlb={token}" for token in tokens),
    ]
    process = subprocess.Popen(
        place.pin(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, SWITCH: "1" if native else "0"},
    )
    said = process.stdout.readline() if process.stdout is not None else ""
    if not said:
        raise OSError(f"the device host of {len(tokens)} devices ended with {process.wait()}")
    return Running(process, json.loads(said)["sockets"])


def has_native() -> bool:
    """Return whether the fast path was built."""
    return fastpath.library is not None


def versions() -> dict[str, str]:
    """Ask each virtiofsd for its version."""
    found = {}
    for target, program in _VIRTIOFSDS:
        if os.access(program, os.X_OK):
            said = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=True
            )
            found[target.name] = said.stdout.partition("\n")[0].removeprefix("virtiofsd ")
    return found

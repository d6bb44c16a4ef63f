"""What is measured: our device in its variants, the packaged virtiofsd, and the floor.

Owns how each is started and ended; for virtiofsd that is its fastest setting that works
(docs/benchmarks/README.md says what was tried). Must not know cases.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from bench.front_end import TOKEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

C_VIRTIOFSD: Final = Path("/usr/lib/qemu/virtiofsd")
RUST_VIRTIOFSD: Final = Path("build/bench/virtiofsd/run")
STOP_DEADLINE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device runs.

    Attributes:
        run_dir: For its sockets.
        shared_dir: What it shares.
        cpus: Where its threads may run; empty: anywhere.
    """

    run_dir: Path
    shared_dir: Path
    cpus: tuple[int, ...] = ()

    def pin(self, command: Sequence[str]) -> list[str]:
        """Confine a command to the CPUs."""
        pinned = ["taskset", "-c", ",".join(map(str, self.cpus))] if self.cpus else []
        return [*pinned, *command]


class Running:
    """A process that serves devices, from construction to `close`.

    Attributes:
        sockets: Of its devices.
        pid: Of the process.
    """

    def __init__(self, process: subprocess.Popen[str], sockets: list[str]) -> None:
        self._process = process
        self.sockets = sockets
        self.pid = process.pid

    def close(self) -> None:
        """End the process; its standard input's end asks our device host to."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        else:
            self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Porthole:
    """Our device host with virtio-fs devices; serves one front-end after another.

    Attributes:
        name: In tables.
        options: For bench.serve_fs.
        environment: Added to ours.
        max_queues: Request queues that it can have.
        serves_again: Whether the process outlives a front-end.
    """

    name: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    max_queues: int = 8
    serves_again: bool = True

    def start(self, place: Place, queues: int = 1, devices: int = 1) -> Running:
        """Start it and wait until its sockets are there.

        Raises:
            RuntimeError: It ended instead.
        """
        process = subprocess.Popen(
            place.pin(
                [
                    *(sys.executable, "-m", "bench.serve_fs"),
                    *("--run-dir", str(place.run_dir), "--shared-dir", str(place.shared_dir)),
                    *("--queues", str(queues), "--devices", str(devices)),
                    *self.options,
                ]
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.name} ended with status {process.wait()}")
        return Running(process, json.loads(line)["sockets"])


@dataclass(frozen=True, slots=True)
class Virtiofsd:
    """A packaged virtiofsd; it serves one front-end and ends, and has one request queue.

    Attributes:
        name: In tables.
        command: Its command line but socket and directory; `{shared_dir}` stands for the latter.
        max_queues: Request queues that it can have.
        serves_again: Whether the process outlives a front-end.
    """

    name: str
    command: tuple[str, ...]
    max_queues: int = 1
    serves_again: bool = False

    def start(self, place: Place, queues: int = 1, devices: int = 1) -> Running:
        """Start it on a socket that listens already."""
        if (queues, devices) != (1, 1):
            raise ValueError(f"{self.name} has one device with one request queue")
        path = place.run_dir / "virtiofsd.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            process = subprocess.Popen(
                [
                    *place.pin([word.format(shared_dir=place.shared_dir) for word in self.command]),
                    f"--fd={listener.fileno()}",
                ],
                pass_fds=[listener.fileno()],
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return Running(process, [str(path)])


Target = Porthole | Virtiofsd

PYTHON: Final = Porthole("python", ("--token", TOKEN), {"PORTHOLE_NATIVE": "0"})
PYTHON_WINDOWS: Final = Porthole("python, windows", (), {"PORTHOLE_NATIVE": "0"})
C: Final = Virtiofsd(
    "virtiofsd (C)",
    (str(C_VIRTIOFSD), "-o", "source={shared_dir}", "-o", "cache=auto", "-o", "sandbox=chroot"),
)
RUST: Final = Virtiofsd(
    "virtiofsd (Rust)",
    (
        *(str(RUST_VIRTIOFSD), "--shared-dir", "{shared_dir}", "--cache", "auto"),
        *("--sandbox", "none", "--seccomp", "none", "--thread-pool-size", "0"),
    ),
)


def virtiofsds() -> list[Virtiofsd]:
    """List those that this machine has."""
    have = ((C, C_VIRTIOFSD), (RUST, RUST_VIRTIOFSD))
    return [target for target, program in have if os.access(program, os.X_OK)]

"""A Linux guest whose process 1 is mini_init, under QEMU by software emulation, with guest init.

`make guest-image` builds its initramfs; its kernel is Debian's, with modules.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc
from porthole.guest.v1 import guest_control_pb2 as pb
from porthole.guest.v1 import guest_control_pb2_grpc, guest_init_pb2, guest_init_pb2_grpc

from tests.support.linux_guest import DEADLINE_S, GUEST, stock_kernel
from tests.support.qemu_guest import KERNEL_ARGUMENTS, LOW_RAM_MIB, RAM_MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

IMAGE: Final = GUEST / "image/x86_64/initramfs"
MODULES: Final = GUEST / "image/x86_64/modules"
PORT: Final = "org.porthole.init.0"
ENVIRONMENT: Final = [b"PATH=/bin"]
FURTHER: Final = b"\x82\xb5\x18\x03new"
"""Field 50000 of GuestCapabilities, 3 bytes, which the image adds."""


class LinuxVm:
    """A guest, and the guest init on the host that serves for it.

    Attributes:
        run_dir: Directory of its sockets, its console and its traces.
        control: GuestControl.
        init: GuestInit.
    """

    def __init__(self, run_dir: Path, kernel_arguments: str, *flags: str) -> None:
        self.run_dir = run_dir
        self.console = run_dir / "console.log"
        self.trace = run_dir / "guest.jsonl"
        self.qemu = subprocess.Popen(
            [
                "qemu-system-x86_64",
                *("-accel", "tcg", "-cpu", "max,la57=off"),
                *("-nodefaults", "-display", "none", "-no-reboot"),
                *("-m", f"{RAM_MIB}M"),
                *("-machine", f"q35,max-ram-below-4g={LOW_RAM_MIB}M"),
                *("-kernel", stock_kernel().image, "-initrd", initramfs(run_dir)),
                *("-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}"),
                *("-serial", f"file:{self.console}"),
                *("-chardev", f"socket,id=init,path={self.channel},server=on,wait=off"),
                *("-device", "virtio-serial-pci"),
                *("-device", f"virtserialport,chardev=init,name={PORT}"),
                *("-netdev", "user,id=net,restrict=on"),
                *("-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56"),
            ],
            stdin=subprocess.DEVNULL,
        )
        self.guest_init = start_guest_init(run_dir, f"--channel=unix:{self.channel}", *flags)
        channel = grpc.insecure_channel(f"unix:{run_dir}/guest-init.sock")
        self._channel = channel
        self.control = guest_control_pb2_grpc.GuestControlStub(channel)
        self.init = guest_init_pb2_grpc.GuestInitStub(channel)

    @property
    def channel(self) -> Path:
        """The socket of its channel."""
        return self.run_dir / "channel.sock"

    def capabilities(self) -> guest_init_pb2.GetGuestCapabilitiesResponse:
        """Read what its kernel publishes, once it is up."""
        request = guest_init_pb2.GetGuestCapabilitiesRequest()
        return self.init.GetGuestCapabilities(request, timeout=DEADLINE_S, wait_for_ready=True)

    def run(
        self,
        *arguments: str,
        terminal: pb.WindowSize | None = None,
        later: Sequence[pb.RunRequest] = (),
        **command: object,
    ) -> Ran:
        """Run a command to its end.

        Args:
            arguments: Its arguments.
            terminal: The size of its terminal; None: it has none.
            later: Further requests, after it has started.
            command: Further fields of the command.
        """
        ran, output, error = Ran(), bytearray(), bytearray()
        wanted = pb.Command(
            arguments=[argument.encode() for argument in arguments],
            environment=ENVIRONMENT,
            terminal=terminal,
            **command,  # type: ignore[arg-type]
        )
        requests = iter([pb.RunRequest(command=wanted), *later])
        for response in self.control.Run(requests, timeout=DEADLINE_S):
            output += response.standard_output
            error += response.standard_error
            if response.HasField("ended"):
                ran.ended = response.ended
        assert ran.ended is not None
        ran.output, ran.error = bytes(output), bytes(error)
        return ran

    def close(self) -> None:
        self._channel.close()
        for process in (self.guest_init, self.qemu):
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


class Ran:
    """A command that has ended: its output, and how it ended."""

    def __init__(self) -> None:
        self.output = b""
        self.error = b""
        self.ended: pb.Ended | None = None

    @property
    def code(self) -> int:
        """Its exit code."""
        assert self.ended is not None
        assert self.ended.WhichOneof("end") == "exit_code", self.ended
        return self.ended.exit_code


def start_guest_init(run_dir: Path, *flags: str) -> subprocess.Popen[str]:
    """Start guest init; it serves when this returns."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "services.guest_init"),
            *(f"--listen=unix:{run_dir}/guest-init.sock", f"--trace-file={run_dir}/guest.jsonl"),
            *("--guest-wait-s=600", *flags),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "ready on" in process.stdout.readline()
    return process


def initramfs(run_dir: Path) -> Path:
    """Pack mini_init, the modules of Debian's kernel, and busybox."""
    root, image = run_dir / "root", run_dir / "initramfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy(GUEST / "bin/busybox", root / "bin/busybox")
    said = subprocess.run([root / "bin/busybox", "--list"], capture_output=True, check=True)
    for name in said.stdout.decode().split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "capabilities.binpb").write_bytes(FURTHER)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        [root / "bin/busybox", "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
        check=True,
    )
    image.write_bytes(IMAGE.read_bytes() + MODULES.read_bytes() + packed.stdout)
    return image


@contextmanager
def linux_vm(
    run_dir: Path, *flags: str, kernel_arguments: str = "swiotlb=force"
) -> Iterator[LinuxVm]:
    """Boot a guest; it is ended after the body."""
    vm = LinuxVm(run_dir, kernel_arguments, *flags)
    try:
        yield vm
    finally:
        vm.close()


def wait_until(path: Path, text: str) -> str:
    """Wait until a file has a text; return what it has."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        content = path.read_text(errors="replace") if path.exists() else ""
        if text in content:
            return content
        time.sleep(0.1)
    raise AssertionError(f"{path} never had {text!r}")

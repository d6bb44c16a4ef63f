"""A real Linux guest under QEMU, and devices plugged into it by QMP.

Tests run it by software emulation; the benchmark, as the machine can.
"""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.support.linux_guest import DEADLINE_S, LinuxGuest, initramfs, stock_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.linux_guest import GuestKernel

PORT = ("-device", "pcie-root-port,id=port0,chassis=1")
"""The port to which `QemuGuest.plug` adds a device."""
RAM_MIB = 512
LOW_RAM_MIB = 256
"""Below 4 GiB. The rest lies above: only such a guest's kernel logs where its bounce pool is."""
RAM_NAME = "memory-backend-memfd"
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 no_timer_check"
"""On a busy host an emulated timer may miss the kernel's check of it, which is then a panic."""


class QemuGuest(LinuxGuest):
    """A guest that is up."""

    def __init__(
        self,
        run_dir: Path,
        *arguments: str,
        kernel: GuestKernel | None = None,
        kernel_arguments: str = "",
        programs: Sequence[str] = (),
        accelerator: str = "tcg",
        cpus: int = 1,
    ) -> None:
        kernel = kernel or stock_kernel()
        ours, shell = socket.socketpair()
        super().__init__(ours, run_dir / "console.log")
        self._monitor, monitor = socket.socketpair()
        with shell, monitor:
            self._process = subprocess.Popen(
                [
                    "qemu-system-x86_64",
                    *("-accel", accelerator, "-cpu", "max,la57=off"),
                    *("-nodefaults", "-display", "none", "-no-reboot"),
                    # TCG leaves out the barriers of a machine that can have one CPU only.
                    *("-smp", f"{cpus},maxcpus={max(cpus, 2)}"),
                    *("-m", f"{RAM_MIB}M"),
                    *("-machine", f"q35,memory-backend=mem,max-ram-below-4g={LOW_RAM_MIB}M"),
                    *("-object", f"memory-backend-memfd,id=mem,size={RAM_MIB}M,share=on"),
                    *("-kernel", kernel.image, "-initrd", initramfs(run_dir, kernel, programs)),
                    *("-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}"),
                    *("-serial", f"file:{self.console}"),
                    *("-chardev", f"socket,id=shell,fd={shell.fileno()}"),
                    *("-serial", "chardev:shell"),
                    *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}"),
                    *("-mon", "chardev=monitor,mode=control"),
                    *arguments,
                ],
                pass_fds=(shell.fileno(), monitor.fileno()),
                stdin=subprocess.DEVNULL,
            )
        self._monitor.settimeout(DEADLINE_S)
        self._from_monitor = self._monitor.makefile("r")

    def await_shell(self) -> None:
        """Wait until the guest's shell, and QEMU's monitor, take commands."""
        super().await_shell()
        self._from_monitor.readline()  # the greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> None:
        """Give QEMU a command by QMP, which must succeed."""
        request = {"execute": name, "arguments": arguments}
        self._monitor.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (answer := json.loads(self._from_monitor.readline())):
            pass
        assert "return" in answer, answer

    def plug(
        self,
        socket_path: Path,
        tag: str,
        *,
        queues: int = 1,
        port: str = "port0",
        iommu_platform: bool = True,
    ) -> None:
        """Add a virtio-fs device to the running guest, on a port of its own; it is probed then."""
        backend = {"type": "unix", "data": {"path": str(socket_path)}}
        self.command(
            "chardev-add",
            id=tag,
            backend={"type": "socket", "data": {"addr": backend, "server": False}},
        )
        self.command(
            "device_add",
            driver="vhost-user-fs-pci",
            id=f"dev-{tag}",
            chardev=tag,
            tag=tag,
            bus=port,
            iommu_platform=iommu_platform,
            **{"num-request-queues": queues},
        )
        # The device then has a driver, whether this scan or the hot-plug interrupt found it first.
        self.run("echo 1 > /sys/bus/pci/rescan")

    def power_off(self) -> None:
        """End the guest in order, and QEMU with it."""
        self.say_power_off()
        assert self._process.wait(DEADLINE_S) == 0

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        super().close()
        self._from_monitor.close()
        self._monitor.close()


@contextmanager
def booted(
    run_dir: Path,
    *arguments: str,
    kernel: GuestKernel | None = None,
    kernel_arguments: str = "",
    programs: Sequence[str] = (),
    accelerator: str = "tcg",
    cpus: int = 1,
) -> Iterator[QemuGuest]:
    """Boot a guest whose shell takes commands, with Debian's kernel unless another is given.

    It is ended after the body.
    """
    guest = QemuGuest(
        run_dir,
        *arguments,
        kernel=kernel,
        kernel_arguments=kernel_arguments,
        programs=programs,
        accelerator=accelerator,
        cpus=cpus,
    )
    try:
        guest.await_shell()
        yield guest
    finally:
        guest.close()

"""A real Linux guest: QEMU by software emulation, a Debian kernel, and a shell on a serial line.

`make guest` fetches what it boots. The kernel's log goes to a file; commands go over the second
serial line, whose shell tells the exit code of each.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 120.0
RAM_MIB = 512
LOW_RAM_MIB = 256
"""Below 4 GiB. The rest lies above: only such a guest's kernel tells where its bounce pool is."""
RAM_NAME = "memory-backend-memfd"

GUEST = Path(__file__).parents[2] / ".guest"
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "fuse",
    "virtiofs",
)
_DONE = "guest is done:"
_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in {" ".join(_MODULES)}; do insmod /modules/$module.ko || poweroff -f; done
exec 0<>/dev/ttyS1 1>&0 2>&0
stty raw -echo
echo {_DONE} 0
while read -r line; do eval "$line"; echo {_DONE} $?; done
"""


class QemuGuest:
    """A guest that is up.

    Attributes:
        console: The kernel's log.
    """

    def __init__(self, run_dir: Path, *arguments: str, kernel_arguments: str = "") -> None:
        self.console = run_dir / "console.log"
        kernels = list((GUEST / "boot").glob("vmlinuz-*"))
        assert kernels, f"there is no kernel in {GUEST}: run `make guest`"
        self._shell, shell = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        with shell, monitor:
            self._process = subprocess.Popen(
                [
                    "qemu-system-x86_64",
                    *("-accel", "tcg", "-cpu", "max,la57=off"),
                    *("-nodefaults", "-display", "none", "-no-reboot"),
                    *("-m", f"{RAM_MIB}M"),
                    *("-machine", f"q35,memory-backend=mem,max-ram-below-4g={LOW_RAM_MIB}M"),
                    *("-object", f"memory-backend-memfd,id=mem,size={RAM_MIB}M,share=on"),
                    *("-kernel", kernels[0], "-initrd", _initramfs(run_dir)),
                    *("-append", f"console=ttyS0 panic=-1 {kernel_arguments}"),
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
        for sock in (self._shell, self._monitor):
            sock.settimeout(DEADLINE_S)
        self._from_shell = self._shell.makefile("r", encoding="utf-8", errors="surrogateescape")
        self._from_monitor = self._monitor.makefile("r")

    def await_shell(self) -> None:
        """Wait until the guest's shell takes commands."""
        code, said = self._answer()
        assert (code, said) == (0, ""), said
        self._from_monitor.readline()  # the greeting
        self.command("qmp_capabilities")

    def attempt(self, command: str) -> tuple[int, str]:
        """Run a command; its exit code and what it said."""
        self._shell.sendall(command.encode() + b"\n")
        return self._answer()

    def run(self, command: str) -> str:
        """Run a command that must succeed; what it said."""
        code, said = self.attempt(command)
        assert code == 0, f"{command}: exit code {code}: {said}"
        return said

    def command(self, name: str, **arguments: Any) -> None:
        """Give QEMU a command by QMP, which must succeed."""
        request = {"execute": name, "arguments": arguments}
        self._monitor.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (answer := json.loads(self._from_monitor.readline())):
            pass
        assert "return" in answer, answer

    def plug(self, socket_path: Path, tag: str) -> None:
        """Add a virtio-fs device to the running guest, on the port "port0"; it is probed then."""
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
            bus="port0",
            iommu_platform=True,
        )
        # Whoever scans first, this or the hot-plug interrupt, the device has a driver afterwards.
        self.run("echo 1 > /sys/bus/pci/rescan")

    def pool(self) -> SwiotlbPool:
        """Where the guest's kernel says that its bounce pool is."""
        found = re.search(
            r"software IO TLB: mapped \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]", self.run("dmesg")
        )
        assert found, "the guest's kernel does not tell where its pool is"
        base, end = (int(text, 16) for text in found.groups())  # the end is the first byte after it
        return SwiotlbPool(Gpa(base), end - base)

    def power_off(self) -> None:
        """End the guest in order, and QEMU with it."""
        self._shell.sendall(b"poweroff -f\n")
        assert self._process.wait(DEADLINE_S) == 0

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for closing in (self._from_shell, self._from_monitor, self._shell, self._monitor):
            closing.close()

    def _answer(self) -> tuple[int, str]:
        said: list[str] = []
        while not (line := self._from_shell.readline()).startswith(_DONE):
            assert line, "the guest is gone:\n" + self.console.read_text(errors="replace")[-4000:]
            said.append(line)
        return int(line.removeprefix(_DONE)), "".join(said)


@contextmanager
def booted(run_dir: Path, *arguments: str, kernel_arguments: str = "") -> Iterator[QemuGuest]:
    """A guest whose shell takes commands; gone afterwards."""
    guest = QemuGuest(run_dir, *arguments, kernel_arguments=kernel_arguments)
    try:
        guest.await_shell()
        yield guest
    finally:
        guest.close()


def _initramfs(run_dir: Path) -> Path:
    """Pack busybox, the kernel's own modules and this machine's flock(1), which busybox lacks."""
    root, image = run_dir / "root", run_dir / "initramfs"
    for name in ("bin", "dev", "proc", "sys", "tmp", "mnt", "modules"):
        (root / name).mkdir(parents=True)
    busybox = GUEST / "bin/busybox"
    (root / "bin/busybox").write_bytes(busybox.read_bytes())
    for name in _MODULES:
        (module,) = (GUEST / "lib/modules").rglob(f"{name}.ko*")
        content = module.read_bytes()
        if module.suffix == ".xz":
            content = lzma.decompress(content)
        (root / "modules" / f"{name}.ko").write_bytes(content)
    flock = shutil.which("flock")
    assert flock
    said = subprocess.run(["ldd", flock], capture_output=True, text=True, check=True).stdout
    for needed in (flock, *re.findall(r"/\S+", said)):
        place = root / needed.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(needed, place)
    (root / "init").write_text(_INIT)
    for path in ("bin/busybox", "init"):
        (root / path).chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        [busybox, "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
        check=True,
    )
    image.write_bytes(packed.stdout)
    return image

"""The guest that tests boot: a kernel, an initramfs with busybox, a shell on a serial line.

The kernel is Debian's, which `make guest` fetches, or ours, from `make kernel`. Its log goes to the
first serial line; commands go over the second, whose shell prints the exit code of each. Must not
know the emulator of the machine.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

DEADLINE_S = 600.0
"""The longest that a guest may be silent: it is emulated, maybe beside other guests. A test run in
it takes 100 s on a busy machine."""

_PROJECT = Path(__file__).parents[2]
GUEST = _PROJECT / ".guest"
OWN_KERNEL = _PROJECT / "build/kernel/x86_64"
QEMU_10 = GUEST / "qemu-10/usr/bin/qemu-system-x86_64"
"""The newest QEMU that is supported, beside the machine's own."""
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "fuse",
    "virtiofs",
    "loop",
)
NETWORK_MODULES = ("failover", "net_failover", "virtio_net")
"""In the guest's /modules; a test that needs them loads them, in this order."""
_DONE = "guest is done:"
_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in $(cat /modules/order); do insmod /modules/$module.ko || poweroff -f; done
exec 0<>/dev/ttyS1 1>&0 2>&0
stty raw -echo
echo {_DONE} 0
while read -r line; do eval "$line"; echo {_DONE} $?; done
"""


class LinuxGuest:
    """A guest whose second serial line is at the other end of a socket.

    Attributes:
        console: The kernel's log.
    """

    def __init__(self, shell: socket.socket, console: Path) -> None:
        self.console = console
        self._shell = shell
        self._shell.settimeout(DEADLINE_S)
        self._from_shell = shell.makefile("r", encoding="utf-8", errors="surrogateescape")

    def await_shell(self) -> None:
        """Wait until the guest's shell takes commands."""
        code, said = self._answer()
        assert (code, said) == (0, ""), said

    def attempt(self, command: str) -> tuple[int, str]:
        """Run a command; return its exit code and output."""
        self._shell.sendall(command.encode() + b"\n")
        return self._answer()

    def run(self, command: str) -> str:
        """Run a command, which must succeed; return its output."""
        code, said = self.attempt(command)
        assert code == 0, f"{command}: exit code {code}: {said}"
        return said

    def pool(self) -> SwiotlbPool:
        """Return the bounce pool that the guest's kernel logged."""
        found = re.search(
            r"software IO TLB: mapped \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]", self.run("dmesg")
        )
        assert found, "the guest's kernel does not log where its pool is"
        base, end = (int(text, 16) for text in found.groups())  # the end is the first byte after it
        return SwiotlbPool(Gpa(base), end - base)

    def say_power_off(self) -> None:
        """Power the guest off in order, without waiting for it."""
        self._shell.sendall(b"poweroff -f\n")

    def close(self) -> None:
        self._from_shell.close()
        self._shell.close()

    def _answer(self) -> tuple[int, str]:
        said: list[str] = []
        while not (line := self._from_shell.readline()).startswith(_DONE):
            assert line, "the guest is gone:\n" + self.console.read_text(errors="replace")[-4000:]
            said.append(line)
        return int(line.removeprefix(_DONE)), "".join(said)


@dataclass(frozen=True)
class GuestKernel:
    """A kernel.

    Attributes:
        image: What a machine boots.
        modules: Where its modules are, of which a guest loads those of virtio-fs; None for a kernel
            that has everything built in.
    """

    image: Path
    modules: Path | None


def stock_kernel() -> GuestKernel:
    """Return Debian's kernel."""
    kernels = list((GUEST / "boot").glob("vmlinuz-*"))
    assert kernels, f"there is no kernel in {GUEST}: run `make guest`"
    return GuestKernel(kernels[0], GUEST / "lib/modules")


def own_kernel() -> GuestKernel:
    """Return the kernel that has our patches."""
    image = OWN_KERNEL / "vmlinux"
    assert image.exists(), f"there is no {image}: run `make kernel`"
    return GuestKernel(image, None)


def initramfs(run_dir: Path, kernel: GuestKernel, programs: Sequence[str] = ()) -> Path:
    """Pack busybox, the kernel's own modules, and programs of this machine.

    Args:
        run_dir: Where the file is made.
        kernel: The kernel that it is for.
        programs: Names of programs, besides flock(1), which busybox lacks.
    """
    root, image = run_dir / "root", run_dir / "initramfs"
    for name in ("bin", "dev", "proc", "sys", "tmp", "mnt", "modules"):
        (root / name).mkdir(parents=True)
    busybox = GUEST / "bin/busybox"
    (root / "bin/busybox").write_bytes(busybox.read_bytes())
    loaded, others = (_MODULES, NETWORK_MODULES) if kernel.modules else ((), ())
    (root / "modules/order").write_text(" ".join(loaded))
    for name in (*loaded, *others):
        assert kernel.modules
        (module,) = kernel.modules.rglob(f"{name}.ko*")
        content = module.read_bytes()
        if module.suffix == ".xz":
            content = lzma.decompress(content)
        (root / "modules" / f"{name}.ko").write_bytes(content)
    for name in ("flock", *programs):
        program = shutil.which(name)
        assert program, name
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for needed in (program, *re.findall(r"/\S+", said)):
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

"""A libvirtd for one test, separate from the machine's libvirt.

It has mount, process and network namespaces of its own. Its files are in the test's directory; the
machine gets at most empty directories, as mount points for them. All processes that it starts end
with it. Domains are emulated by software, and boot the kernel of `linux_guest`.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.support.linux_guest import DEADLINE_S, LinuxGuest, initramfs, stock_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

RAM_MIB = 512
_DIRECTORIES = (
    "/etc/libvirt",
    "/etc/qemu",
    *("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"),
)
_START = """
for each in "$@"; do mkdir -p "$each"; mount --bind "$ROOT$each" "$each"; done
for each in passwd group; do mount --bind "$ROOT/$each" "/etc/$each"; done
libvirtd &
wait
"""
"""Process 1 of the namespaces; it waits for all orphans, including those of daemons."""

_CONFIGURATION = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
_USER = "libvirt-qemu"
"""Debian's libvirt does not start without this user, which another package creates."""

_DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <memory unit='MiB'>{ram_mib}</memory>
  <vcpu current='1'>2</vcpu>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=ttyS0 panic=-1</cmdline>
  </os>
  <cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <serial type='file'><source path='{console}'/></serial>
    <serial type='unix'><source mode='connect' path='{shell}'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
  <qemu:override>{overrides}</qemu:override>
</domain>
"""


class Libvirt:
    """Use as a context manager.

    Attributes:
        root: Directory that holds its directories.
    """

    def __init__(self, run_dir: Path) -> None:
        self.root = run_dir / "libvirt"
        self._run_dir = run_dir
        for each in _DIRECTORIES:
            (self.root / each.lstrip("/")).mkdir(parents=True)
        self.write("etc/libvirt/qemu.conf", _CONFIGURATION)
        self.write("etc/libvirt/libvirtd.conf", 'auth_unix_rw = "none"\n')
        for name, entry in (("passwd", "64055:64055::/:/usr/sbin/nologin"), ("group", "64055:")):
            shutil.copy(f"/etc/{name}", self.root / name)
            with (self.root / name).open("a") as file:
                file.write(f"{_USER}:x:{entry}\n")

    def __enter__(self) -> Self:
        """Start it, and wait until it takes commands."""
        with contextlib.ExitStack() as stack:
            # Programs that libvirtd starts inherit the address, and may send to it, too.
            notices = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            notices.settimeout(DEADLINE_S)
            notices.bind(str(self._run_dir / "notify"))
            log = stack.enter_context((self.root / "libvirtd.log").open("wb"))
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"),
                    *("--mount-proc", "--propagation=private"),
                    *("sh", "-ec", _START, "sh", *_DIRECTORIES),
                ],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "ROOT": str(self.root),
                    "NOTIFY_SOCKET": str(self._run_dir / "notify"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            try:
                assert b"READY=1" in notices.recv(4096)
            except TimeoutError:
                raise AssertionError(self.log()) from None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End it and everything that it started."""
        self._stack.close()

    def write(self, path: str, content: str) -> None:
        """Write a file below one of its directories."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def log(self) -> str:
        return (self.root / "libvirtd.log").read_text()

    def virsh(self, *arguments: str | Path) -> str:
        """Run a command of virsh, which must succeed; return its output."""
        pid = self._process.pid
        done = subprocess.run(
            [
                *("nsenter", f"--mount=/proc/{pid}/ns/mnt"),
                *(f"--pid=/proc/{pid}/ns/pid_for_children", "--", "virsh"),
                *("--quiet", "--connect=qemu:///system", *arguments),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{self.log()}"
        return done.stdout

    @contextlib.contextmanager
    def booted(self, devices: str, overrides: str = "") -> Iterator[LinuxGuest]:
        """A domain with these devices and its serial lines, whose shell takes commands.

        `overrides` are of properties of QEMU's devices.
        """
        kernel = stock_kernel()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self._run_dir / "shell"))
            listening.listen(1)
            listening.settimeout(DEADLINE_S)
            self.write(
                "domain.xml",
                _DOMAIN.format(
                    ram_mib=RAM_MIB,
                    kernel=kernel.image,
                    initramfs=initramfs(self._run_dir, kernel),
                    emulator=shutil.which("qemu-system-x86_64"),
                    console=self.root / "console.log",
                    shell=self._run_dir / "shell",
                    devices=devices,
                    overrides=overrides,
                ),
            )
            self.virsh("create", self.root / "domain.xml")
            shell, _ = listening.accept()
        guest = LinuxGuest(shell, self.root / "console.log")
        with contextlib.closing(guest):
            guest.await_shell()
            yield guest

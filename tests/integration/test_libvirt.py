"""`porthole device` where virtiofsd and passt stand, in a domain of libvirt."""

from __future__ import annotations

import json
import os
import select
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.libvirt import Libvirt
from tests.support.linux_guest import DEADLINE_S, NETWORK_MODULES
from tests.support.linux_user import exercise, in_the_guest, make_tree, on_the_host
from tests.support.passt import PASST
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.libvirt, pytest.mark.qemu, pytest.mark.root]

PORTHOLE_FS = Path(sys.executable).with_name("porthole-fs")

RUNS_ALREADY = """
<filesystem type='mount'>
  <driver type='virtiofs' queue='1024'/>
  <source socket='{socket}'/>
  <target dir='running'/>
</filesystem>
"""
IS_STARTED = """
<filesystem type='mount'>
  <driver type='virtiofs' queue='1024'/>
  <binary path='{binary}' xattr='on'>
    <lock posix='on' flock='on'/>
  </binary>
  <source dir='{shared}'/>
  <target dir='started'/>
</filesystem>
"""
IS_FOUND = """
<filesystem type='mount'>
  <driver type='virtiofs'/>
  <binary><cache mode='always'/></binary>
  <source dir='{shared}'/>
  <target dir='found'/>
</filesystem>
"""
INTERFACE = """
<interface type='vhostuser'>
  <mac address='02:00:00:00:00:07'/>
  <source type='unix' path='{socket}' mode='client'/>
  <model type='virtio'/>
</interface>
"""
WITHOUT_MSI_X = """
<qemu:device alias='net0'>
  <qemu:frontend><qemu:property name='vectors' type='unsigned' value='0'/></qemu:frontend>
</qemu:device>
"""
"""Without KVM, QEMU 7.2 crashes with them (docs/qemu.md)."""
USER_NETWORK = ("--user", f"--passt={PASST}", "--client-ip=10.9.0.2/24", "--mac=02:00:00:00:00:07")
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
DESCRIPTOR = {"description": "Porthole", "type": "fs", "binary": str(PORTHOLE_FS)}


@contextmanager
def that_ends(shared: Path) -> Iterator[None]:
    """Wait until the process that shares a directory has ended."""
    said = os.fsencode(f"source={shared},")
    (process,) = (os.pidfd_open(pid) for pid in _processes() if said in _command_line(pid))
    try:
        yield
        assert select.select([process], [], [], DEADLINE_S)[0], f"{shared} is shared yet"
    finally:
        os.close(process)


def _processes() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.passt
def test_a_domain_mounts_shares_and_is_on_a_user_mode_network(
    run_dir: Path, tmp_path: Path
) -> None:
    one, two, three = (make_tree(tmp_path / name) for name in ("one", "two", "three"))
    libvirt = Libvirt(run_dir)
    libvirt.write("etc/qemu/vhost-user/10-porthole.json", json.dumps(DESCRIPTOR))
    devices = IS_STARTED.format(binary=PORTHOLE_FS, shared=two) + IS_FOUND.format(shared=three)
    adapter = ("net", f"--socket-path={run_dir}/n.sock", *USER_NETWORK)
    with (
        running(*fs(run_dir, one)) as device,
        running(*adapter, prefix=ALONE) as network,
        libvirt,
    ):
        devices += RUNS_ALREADY.format(socket=device.socket_path)
        devices += INTERFACE.format(socket=network.socket_path)
        with libvirt.booted(devices, WITHOUT_MSI_X) as guest, that_ends(two), that_ends(three):
            for tag, shared in (("running", one), ("started", two)):
                guest.run(f"mount -t virtiofs {tag} /mnt")
                exercise(guest, shared)
                guest.run("umount /mnt && rm -r /tmp/made")
            for module in NETWORK_MODULES:
                guest.run(f"insmod /modules/{module}.ko")
            guest.run("ip link set eth0 up")
            lease = guest.run("udhcpc -q -n -f -i eth0 -s /bin/true < /dev/null 2>&1")
            assert "lease of 10.9.0.2 obtained" in lease
            guest.run("mount -t virtiofs found /mnt")
            assert in_the_guest(guest, "/mnt/tree") == on_the_host(three / "tree")
            guest.say_power_off()
        for each in (device, network):
            code, log = each.end()
            assert code == 0, log
    for alias in ("fs0", "fs1"):
        log = (libvirt.root / f"var/log/libvirt/qemu/guest-{alias}-virtiofsd.log").read_text()
        assert log.count("WARNING") == log.count("not confined") == 1
        assert "ending: the front-end has gone" in log

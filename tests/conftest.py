"""Fixtures that every test may use, and the rules for what a machine may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from services.vm_owner.machines.qemu.architecture import ARM64
from services.vm_owner.machines.qemu.image import BUILT, IMAGES
from tests.browser.chromium import AXE, CHROMIUM
from tests.fuzz.targets import clang
from tests.support.buf import BUF
from tests.support.directories import directory, mounts_below
from tests.support.linux_guest import GUEST, OWN_KERNEL, QEMU_10
from tests.support.linux_user import make_tree
from tests.support.linux_vm import IMAGE, MODULES
from tests.support.node import MODULES as NODE_MODULES
from tests.support.passt import PASST

if TYPE_CHECKING:
    from collections.abc import Iterator

# A busy machine must not fail a property test: no deadline for single examples, nor for all.
hypothesis.settings.register_profile(
    "porthole", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("porthole")

_LACKS = {
    "root": None if os.geteuid() == 0 else "needs root; run `sudo make test` for it",
    "fuse": None
    if os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)
    else "needs root and /dev/fuse",
    "tap": None
    if os.geteuid() == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK)
    else "needs root and /dev/net/tun",
    "chromium": None
    if CHROMIUM.exists() and AXE.exists()
    else "needs chromium, and axe-core; install it and run `make test` where there is npm",
    "buf": None if BUF.exists() else "needs buf; run `make check` where there is npm",
    "node": None
    if shutil.which("node") and NODE_MODULES.exists()
    else "needs grpc-js; run `make test` where there is npm",
    "fio": None if shutil.which("fio") else "needs fio",
    "iperf3": None if shutil.which("iperf3") else "needs iperf3",
    "rsync": None if shutil.which("rsync") else "needs rsync",
    "stress_ng": None if shutil.which("stress-ng") else "needs stress-ng",
    "fuzz": None if clang() else "needs clang and its sanitizers (libclang-rt)",
    "qemu": None
    if shutil.which("qemu-system-x86_64") and (GUEST / ".ready").exists()
    else "needs qemu-system-x86_64 and, for what it boots, `make guest`",
    "guest_arm64": None
    if shutil.which(ARM64.binary)
    and shutil.which("aarch64-linux-gnu-gcc")
    and (BUILT / ARM64.kernel).exists()
    and (IMAGES / ARM64.image / "initramfs").exists()
    else "needs qemu-system-aarch64, and gcc-aarch64-linux-gnu for `make guest-image` and "
    "`make kernel ARCH=arm64`",
    "guest_image": None
    if shutil.which("qemu-system-x86_64")
    and (GUEST / ".ready").exists()
    and IMAGE.exists()
    and MODULES.exists()
    else "needs qemu-system-x86_64, and `make guest guest-image`",
    "guest_kernel": None
    if shutil.which("qemu-system-x86_64") and (GUEST / ".ready").exists() and OWN_KERNEL.exists()
    else "needs qemu-system-x86_64, `make guest` and, for the kernel, `make kernel`",
    "qemu10": None
    if QEMU_10.exists()
    else "needs QEMU 10, which `make guest` fetches on Debian 12",
    "libvirt": None
    if shutil.which("libvirtd") and shutil.which("virsh")
    else "needs libvirtd and virsh",
    "passt": None if PASST.exists() else "needs passt of 2026; run `make passt`",
    "prometheus": None
    if shutil.which("prometheus") and shutil.which("promtool")
    else "needs prometheus and promtool",
}

_KERNEL = tuple(
    Path(__file__).parent / folder
    for folder in (
        "conformance",
        "guest",
        "integration",
        "unit/devicehost/vhost_user",
        "unit/simguest",
    )
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make flaky` runs, and skip what this machine cannot run, and say why.

    Where nothing may be skipped, what the machine lacks makes the test fail.
    """
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in _KERNEL):
            item.add_marker("kernel")
    if os.environ.get("PORTHOLE_SKIP_NOTHING"):
        return
    for item in items:
        for marker, lack in _LACKS.items():
            if lack and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=lack))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets (107 bytes)."""
    with directory() as path:
        yield path


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Pytest's directory, in which nothing may stay mounted: pytest removes it with all below."""
    yield tmp_path
    left = mounts_below(tmp_path)
    for mount_point in reversed(left):
        subprocess.run(["umount", "-l", mount_point], check=True)
    assert not left, f"the test left mounts: {left}"


@pytest.fixture
def shared_tree(tmp_path: Path) -> Path:
    """A share with a tree in it."""
    return make_tree(tmp_path / "shared")


@pytest.fixture
def qemu() -> str:
    """The QEMU that an owner is to use; a test is parametrized with others."""
    return "qemu-system-x86_64"

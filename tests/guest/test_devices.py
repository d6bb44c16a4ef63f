"""Devices of ours on the kernel of `make kernel`: they reach its pool, and the pool is enough."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import DeviceHost, DeviceSpec, FsBackend
from services.handshake.options import build_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from tests.support.linux_guest import own_kernel
from tests.support.linux_user import exercise
from tests.support.qemu_guest import PORT, booted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.qemu_guest import QemuGuest

pytestmark = pytest.mark.guest_kernel

MIB = 1 << 20
VM_ID = "0e6f1f0b-3f0e-4a53-9d0c-6d2f5a4b7c21"
TAG = "data"
READERS = 8


def published(guest: QemuGuest) -> SwiotlbPool:
    base, size = guest.run("cat /sys/bus/virtio/swiotlb_base /sys/bus/virtio/swiotlb_size").split()
    return SwiotlbPool(Gpa(int(base, 16)), int(size))


@pytest.fixture
def host(run_dir: Path) -> Iterator[DeviceHost]:
    (run_dir / "dev").mkdir()
    made = DeviceHost(run_dir, lambda info, detail: None)
    yield made
    made.close()


def mount(guest: QemuGuest, host: DeviceHost, shared: Path) -> None:
    """Plug in a device that has the published pool, and mount it at /mnt."""
    options = build_options(TAG, "", format_token(published(guest)), VM_ID)
    spec = DeviceSpec(VM_ID, TAG, TAG, options, FsBackend(str(shared)))
    guest.plug(host.create_device(spec, lambda event: None).socket_path, TAG)
    guest.run(f"mount -t virtiofs {TAG} /mnt && mount -t debugfs none /sys/kernel/debug")


def most_slots_used(guest: QemuGuest) -> int:
    return int(guest.run("cat /sys/kernel/debug/swiotlb/virtio/io_tlb_used_hiwater"))


@pytest.mark.parametrize("size_mib", [6, 64])
def test_a_share_is_served_through_the_pool(
    run_dir: Path, host: DeviceHost, shared_tree: Path, size_mib: int
) -> None:
    pool = f"hv_pci_swiotlb={size_mib}M"
    with booted(run_dir, *PORT, kernel=own_kernel(), kernel_arguments=pool) as guest:
        mount(guest, host, shared_tree)
        exercise(guest, shared_tree)
        counters = host.get_device(VM_ID, TAG).counters
        assert counters.translations_refused == 0
        assert counters.requests > 500
        assert 0 < counters.highest_slot <= size_mib * MIB // 2048
        assert 0 < most_slots_used(guest) <= size_mib * MIB // 2048
        guest.run("umount /mnt")
        guest.power_off()


def test_readers_wait_for_room_in_a_full_pool(
    run_dir: Path, host: DeviceHost, shared_tree: Path
) -> None:
    content = os.urandom(24 * MIB)
    (shared_tree / "big").write_bytes(content)
    with booted(
        run_dir, *PORT, cpus=4, kernel=own_kernel(), kernel_arguments="hv_pci_swiotlb=2M"
    ) as guest:
        mount(guest, host, shared_tree)
        read = "dd if=/mnt/big bs=4M iflag=direct 2>/tmp/said-$i | sha256sum > /tmp/sum-$i"
        guest.run(f"for i in $(seq {READERS}); do ({read}) & done; wait")
        sums = guest.run("cat /tmp/sum-*").splitlines()
        said = guest.run("cat /tmp/said-*; dmesg | grep virtio-fs || true")
        assert sums == [f"{hashlib.sha256(content).hexdigest()}  -"] * READERS, said
        assert most_slots_used(guest) > 900, "the pool was never full: 1,024 slots"
        guest.run("umount /mnt")
        guest.power_off()

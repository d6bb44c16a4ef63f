"""Files read and written by a Linux guest: our device in each of its ways to memory, and virtiofsd.

Owns one guest with a kernel of ours, to which every program is attached at the same time, and the
loads of fio in it. The device that is confined to the pool has the guest bounce; the others have
not, as that is how they are used. Must not know how figures are reported.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import trees
from bench.cases import KIB, MIB, WORKING_SET_BYTES, Medium
from bench.results import GuestFilesRow
from bench.targets import ROOT, Place, of_guest, virtiofsds
from tests.support.linux_guest import own_kernel
from tests.support.qemu_guest import booted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rounds import Settings
    from bench.targets import Target
    from tests.support.qemu_guest import QemuGuest

POOL_NAME: Final = "pool"
"""The target for which the guest bounces."""
POOL_BYTES: Final = 64 * MIB
WRITTEN_FILE: Final = "written"
_HOST: Final = "/mnt/0"
"""In the guest: the host's root, for its fio. It is served by a device that is not measured."""


@dataclass(frozen=True, slots=True)
class Load:
    """Something that fio does for as long as one measurement takes.

    Attributes:
        name: For tables.
        operation: `rw` of fio.
        block_bytes: Bytes of one operation.
        jobs: Threads that do it.
    """

    name: str
    operation: str
    block_bytes: int
    jobs: int = 1


LOADS: Final = (
    Load("read 1 MiB in order", "read", MIB),
    Load("write 1 MiB in order", "write", MIB),
    Load("read 4 KiB at random", "randread", 4 * KIB),
    Load("read 4 KiB at random, 4 threads", "randread", 4 * KIB, jobs=4),
)


def measure(settings: Settings, accelerator: str) -> Iterator[GuestFilesRow]:
    """Boot a guest, attach all programs, and measure each under each load in every round.

    Args:
        settings: Of the run.
        accelerator: How QEMU executes the guest.

    Raises:
        OSError: fio failed in the guest.
    """
    shared = settings.shared[Medium.TMPFS]
    trees.make_tree(shared, WORKING_SET_BYTES)
    with contextlib.ExitStack() as stack:
        guest, targets = _guest(settings, accelerator, shared, stack)
        for load in LOADS:
            rates: dict[str, list[float]] = {target.name: [] for target in targets}
            for number in range(settings.rounds):
                turn = number % len(targets)
                for target in (*targets[turn:], *targets[:turn]):
                    place = f"/mnt/{1 + targets.index(target)}"
                    rates[target.name].append(_rate(guest, place, load, settings.seconds))
            for name, found in rates.items():
                yield GuestFilesRow(name=name, load=load.name, rates=found)


def _guest(
    settings: Settings, accelerator: str, shared: Path, stack: contextlib.ExitStack
) -> tuple[QemuGuest, list[Target]]:
    run_dir = Path(tempfile.mkdtemp(dir=settings.run_dir))
    most = 1 + len(of_guest(0, 0)) + len(virtiofsds())
    ports = [
        word
        for number in range(most)
        for word in ("-device", f"pcie-root-port,id=port{number},chassis={number + 1}")
    ]
    guest = stack.enter_context(
        booted(
            run_dir,
            *ports,
            kernel=own_kernel(),
            kernel_arguments=f"hv_pci_swiotlb={POOL_BYTES}",
            accelerator=accelerator,
        )
    )
    base, size = (guest.run(f"cat /sys/bus/virtio/swiotlb_{name}") for name in ("base", "size"))
    targets = [*of_guest(int(base, 16), int(size)), *virtiofsds()]
    for number, (target, directory) in enumerate(
        [(ROOT, Path("/")), *((target, shared) for target in targets)]
    ):
        place = Place(run_dir / f"target-{number}", directory, settings.device_cpus)
        place.run_dir.mkdir()
        running = stack.enter_context(target.start(place))
        guest.plug(
            Path(running.sockets[0]),
            f"share{number}",
            port=f"port{number}",
            iommu_platform=target.name == POOL_NAME,
        )
        guest.run(f"mkdir -p /mnt/{number} && mount -t virtiofs share{number} /mnt/{number}")
    stack.callback(guest.close)  # before its devices end
    for name in ("dev", "proc", "sys", "mnt"):
        guest.run(f"mount --rbind /{name} {_HOST}/{name}")
    return guest, targets


def _rate(guest: QemuGuest, place: str, load: Load, seconds: float) -> float:
    """Run fio once; return its operations per second."""
    written = load.operation == "write"
    name = f"{WRITTEN_FILE}-{place.rpartition('/')[2]}" if written else trees.READ_FILE
    said = guest.run(
        f"chroot {_HOST} fio --name=load --filename={place}/{name} --rw={load.operation} "
        f"--bs={load.block_bytes} --size={WORKING_SET_BYTES} --direct=1 --ioengine=psync --thread "
        f"--numjobs={load.jobs} --group_reporting --time_based --runtime={seconds:g} "
        "--output-format=json"
    )
    [job] = json.loads(said[said.index("{") :])["jobs"]
    if job["error"]:
        raise OSError(f"fio failed with {job['error']} on {place}")
    return round(float(job["write" if written else "read"]["iops"]), 1)

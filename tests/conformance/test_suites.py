"""Known test programs on a share: fio, which verifies its own writes, and stress-ng."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.effort import SCALE, SEED

if TYPE_CHECKING:
    from tests.conformance.conftest import Place

pytestmark = pytest.mark.fuse

FIO_BYTES: Final = 24 << 20
STRESS_S: Final = 2
DEADLINE_S: Final = 240.0

FIO: Final = {
    "mixed sizes": "--ioengine=psync --rw=randrw --bsrange=512-256k --fsync=32",
    "unaligned": "--ioengine=psync --rw=randwrite --bsrange=512-9k --bs_unaligned",
    "direct and asynchronous": "--ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=4k",
    "mapped": "--ioengine=mmap --rw=randwrite --bs=4k",
    "vectors": "--ioengine=pvsync2 --rw=write --bs=1m",
    "while it writes": "--ioengine=psync --rw=randwrite --bs=16k --verify_backlog=64",
}
"""Arguments of fio; four of its processes work at a time, each on a file of its own."""

STRESSORS: Final = {
    "names": "chdir dentry dir dirdeep dirmany filename getdent handle link mknod open rename "
    "symlink touch",
    "attributes": "access chmod chown fcntl fstat utime xattr",
    "data": "aio aiol copy-file fallocate fpunch fsize hdd io iomix mmap msync readahead seek "
    "sendfile splice sync-file",
    "locks": "flock locka lockf lockofd",
}
"""The stressors that use file systems, in groups; those of a group run at the same time. Stressors
for calls that FUSE lacks (fiemap, verity, leases, inode flags) are left out."""

SIZES: Final = [
    *("--copy-file-bytes=128m", "--fallocate-bytes=16m", "--hdd-bytes=16m", "--iomix-bytes=16m"),
    *("--mmap-bytes=16m", "--readahead-bytes=16m", "--seek-size=16m", "--sync-file-bytes=16m"),
]
"""Sizes of files that are up to 1 GiB by default; with these, all fit on the tmpfs together."""

_numbers = itertools.count()


@pytest.mark.fio
@pytest.mark.parametrize("how", FIO)
def test_fio(how: str, place: Place) -> None:
    name = f"fio-{next(_numbers)}"
    (place.mounted / name).mkdir()
    job = [
        *("fio", "--name=verify", "--numjobs=4", f"--size={FIO_BYTES // 4 * SCALE}"),
        *("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", f"--randseed={SEED}"),
        *FIO[how].split(),
    ]
    _run([*job, "--do_verify=1", "--end_fsync=1", f"--directory={place.mounted / name}"])
    # What the guest has written is what the host has.
    _run([*job, "--verify_only=1", f"--directory={place.shared / name}"])


@pytest.mark.stress_ng
@pytest.mark.parametrize("group", STRESSORS)
def test_stress_ng(group: str, place: Place) -> None:
    directory = place.mounted / f"stress-{next(_numbers)}"
    directory.mkdir()
    stressors = [flag for name in STRESSORS[group].split() for flag in (f"--{name}", "1")]
    said = _run(
        [
            *("stress-ng", *stressors, *SIZES, "--verify", f"--timeout={STRESS_S * SCALE}"),
            *(f"--seed={SEED}", f"--temp-path={directory}"),
        ]
    )
    assert "skip" not in said, said
    assert "successful run completed" in said, said
    assert list(directory.iterdir()) == []


def _run(command: list[str]) -> str:
    """Run a program, which must succeed; returns its output."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S * SCALE,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout

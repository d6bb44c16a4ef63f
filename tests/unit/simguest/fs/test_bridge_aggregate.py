"""An aggregate device through its mount point: programs use a share while others come and go."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import AggregateBackend, ChildSpec
from services.simguest.fs.mount import is_mounted
from tests.unit.simguest.rig import VM_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.simguest.rig import Rig

pytestmark = pytest.mark.fuse

ROUNDS = 50
TAG = "shares"


def add(rig: Rig, name: str, directory: Path, options: str = "") -> None:
    rig.host.add_child(
        VM_ID, TAG, ChildSpec(name, f"{name};{options}vm_id={VM_ID}", str(directory))
    )


def remove(rig: Rig, name: str) -> None:
    rig.host.remove_child(VM_ID, TAG, name)


@pytest.fixture
def place(rig: Rig, run_dir: Path) -> Iterator[Path]:
    """The mount point of an aggregate device without shares."""
    made = run_dir / "mount point"
    made.mkdir()
    device = rig.create(TAG, AggregateBackend(), "queues=4")
    rig.workload.attach_share(TAG, device)
    rig.workload.mount(TAG, made)
    yield made
    if is_mounted(made):
        rig.workload.unmount(TAG)


def refused(number: int, *command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert os.strerror(number) in done.stderr


def test_programs_see_directories_with_rules_of_their_own(
    rig: Rig, shared: Path, place: Path
) -> None:
    (shared / "file").write_text("text")
    add(rig, "open", shared)
    add(rig, "closed", shared, "ro;")
    assert sorted(path.name for path in place.iterdir()) == ["closed", "open"]
    assert (place / "closed" / "file").read_text() == "text"
    (place / "open" / "new").write_text("new")
    refused(errno.EROFS, "touch", place / "closed" / "file")
    refused(errno.EPERM, "mkdir", place / "made")
    refused(errno.EPERM, "rmdir", place / "open")
    one, other = (place / name / "file" for name in ("open", "closed"))
    assert not one.samefile(other), "one file by two shares would be taken for a link"
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        os.link(other, place / "open" / "link")
    (shared / "sub").mkdir()
    add(rig, "sub", shared / "sub")
    subprocess.run(["mv", place / "open" / "new", place / "sub" / "moved"], check=True, timeout=30)
    assert (shared / "sub" / "moved").read_text() == "new"
    subprocess.run(["sync", "-f", place], check=True, timeout=30)


def test_shares_come_and_go_while_programs_work_on_another(
    rig: Rig, shared: Path, run_dir: Path, place: Path
) -> None:
    content = os.urandom(1 << 20)
    add(rig, "stays", shared)
    over = threading.Event()
    failures: list[BaseException] = []
    turns: list[int] = []

    def work() -> None:
        count = 0
        try:
            while not over.is_set():
                path = place / "stays" / f"file-{count % 8}"
                path.write_bytes(content)
                digest = hashlib.sha256(path.read_bytes()).digest()
                assert digest == hashlib.sha256(content).digest()
                path.unlink()
                count += 1
        except BaseException as error:
            failures.append(error)
        turns.append(count)

    worker = threading.Thread(target=work)
    worker.start()
    comes = run_dir / "comes"
    comes.mkdir()
    try:
        for turn in range(ROUNDS):
            add(rig, "comes", comes)
            (place / "comes" / "file").write_text(str(turn))
            assert (comes / "file").read_text() == str(turn)
            opened = os.open(place / "comes" / "file", os.O_RDONLY)
            remove(rig, "comes")
            assert [path.name for path in place.iterdir()] == ["stays"]
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                os.fsync(opened)
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                os.close(opened)
    finally:
        over.set()
        worker.join()
    assert failures == []
    assert turns[0] > 0
    assert rig.counters(TAG).translations_refused == 0


def test_a_share_on_a_file_system_that_has_died_disturbs_no_other(
    rig: Rig, shared: Path, run_dir: Path, place: Path
) -> None:
    (shared / "file").write_text("text")
    inner = run_dir / "inner"
    inner.mkdir()
    rig.share("inner", shared)
    rig.workload.mount("inner", inner)
    add(rig, "dead", inner)
    add(rig, "alive", shared)
    assert (place / "dead" / "file").read_text() == "text"
    rig.remove_from_host("inner")  # every access of the mount fails from now on
    with pytest.raises(OSError):
        (inner / "other").stat()
    with pytest.raises(OSError):
        (place / "dead" / "other").stat()
    assert sorted(path.name for path in place.iterdir()) == ["alive", "dead"]
    assert (place / "alive" / "file").read_text() == "text"
    (place / "alive" / "new").write_text("new")
    add(rig, "later", shared)
    assert (place / "later" / "new").read_text() == "new"
    remove(rig, "dead")
    assert sorted(path.name for path in place.iterdir()) == ["alive", "later"]
    rig.workload.detach("inner")
    assert list(inner.iterdir()) == []

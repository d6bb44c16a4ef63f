"""Options of a share, by what programs see and do on its mount point."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from services.simguest.fs.mount import is_mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.simguest.rig import Rig

pytestmark = pytest.mark.fuse

DEADLINE_S = 30


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(rig: Rig, run_dir: Path) -> Iterator[Path]:
    made = run_dir / "mount point"
    made.mkdir()
    yield made
    if is_mounted(made):
        rig.workload.unmount("data")


def mount(rig: Rig, shared: Path, place: Path, options: str) -> None:
    rig.share("data", shared, options)
    rig.workload.mount("data", place)


def test_metadata_is_the_guests_alone(rig: Rig, shared: Path, place: Path) -> None:
    (shared / "script").write_text("#!/bin/sh\necho it runs\n")
    (shared / "script").chmod(0o644)
    mount(rig, shared, place, "metadata")
    script = place / "script"
    assert not os.access(script, os.X_OK)
    run("chown", "1000:100", script)
    run("chmod", "4750", script)
    assert run(script) == "it runs\n"
    assert run("stat", "-c", "%u %g %a", script) == "1000 100 4750\n"
    run("mkfifo", "-m", "600", place / "fifo")
    run("mknod", place / "null", "c", "1", "3")
    assert run("stat", "-c", "%F %t %T", place / "null") == "character special file 1 3\n"
    assert run("find", place, "-type", "p") == f"{place / 'fifo'}\n"
    archive = place.parent / "archive.tar"
    run("tar", "-C", place, "-cf", archive, ".")
    run("mkdir", place / "unpacked")
    run("tar", "-C", place / "unpacked", "-xpf", archive)
    assert run("stat", "-c", "%u %g %F", place / "unpacked" / "script") == (
        "1000 100 regular file\n"
    )
    assert run("stat", "-c", "%F", place / "unpacked" / "fifo") == "fifo\n"
    rig.workload.unmount("data")
    for path in (shared / "script", shared / "fifo", shared / "unpacked" / "null"):
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_uid, status.st_mode & stat.S_ISUID) == (os.geteuid(), 0)


def test_a_fifo_that_is_kept_carries_data(rig: Rig, shared: Path, place: Path) -> None:
    mount(rig, shared, place, "metadata")
    run("mkfifo", place / "fifo")
    script = 'echo through the fifo > "$1" & cat "$1"; wait'
    assert run("sh", "-c", script, "sh", place / "fifo") == "through the fifo\n"
    assert (shared / "fifo").stat().st_size == 0


def test_absolute_symlinks_lead_into_the_mount(rig: Rig, shared: Path, place: Path) -> None:
    (shared / "file").write_text("content")
    (shared / "link").symlink_to("/file")
    mount(rig, shared, place, f"symlinkroot={place}")
    assert (place / "link").read_text() == "content"
    (place / "made").symlink_to(place / "file")
    (place / "own").symlink_to("/etc/passwd")
    assert (place / "own").readlink().as_posix() == "/etc/passwd"
    assert (place / "own").read_bytes().startswith(b"root:")
    rig.workload.unmount("data")
    assert (shared / "made").readlink().as_posix() == "/file"


def test_a_directorys_case_flag(rig: Rig, shared: Path, place: Path) -> None:
    (shared / "dir").mkdir()
    mount(rig, shared, place, "case=dir")
    assert os.getxattr(place / "dir", "system.wsl_case_sensitive") == b"1"
    os.setxattr(place / "dir", "system.wsl_case_sensitive", b"1")
    assert os.listxattr(place / "dir") == []

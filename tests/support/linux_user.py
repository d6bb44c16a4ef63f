"""The work of a Linux user on a share, checked from both sides."""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.linux_guest import LinuxGuest


def make_tree(shared: Path) -> Path:
    """Put a tree into a share: small files, a large one, and names that need care."""
    tree = shared / "tree"
    for place in range(60):
        file = tree / f"directory {place % 6}" / f"file-{place}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(place * 311))
    (tree / "large").write_bytes(os.urandom(5 << 20))
    (tree / "ünïcode").write_text("a name that is not ASCII")
    return shared


def on_the_host(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file()
    }


def in_the_guest(guest: LinuxGuest, tree: str) -> dict[str, str]:
    lines = guest.run(f"(cd {tree} && find . -type f -exec sha256sum {{}} +)").splitlines()
    return {
        name.removeprefix("./"): digest for digest, name in (line.split("  ", 1) for line in lines)
    }


def exercise(guest: LinuxGuest, shared: Path) -> None:
    """Work on a share as a user does, and check the results from both sides."""
    assert in_the_guest(guest, "/mnt/tree") == on_the_host(shared / "tree")

    guest.run("mkdir -p /tmp/made/deep/er")
    guest.run("for i in $(seq 30); do head -c $((i * 999)) /dev/urandom > /tmp/made/deep/$i; done")
    guest.run("head -c 3000000 /dev/urandom > /tmp/made/deep/er/large")
    guest.run("cp -a /tmp/made /mnt/")
    assert on_the_host(shared / "made") == in_the_guest(guest, "/tmp/made")

    guest.run("mv /mnt/made/deep/7 /mnt/renamed && ln /mnt/renamed /mnt/linked")
    assert not (shared / "made/deep/7").exists()
    assert (shared / "renamed").samefile(shared / "linked")
    guest.run("ln -s renamed /mnt/pointer && cmp /mnt/pointer /tmp/made/deep/7")
    assert (shared / "pointer").readlink().name == "renamed"
    guest.run("rm /mnt/linked && [ $(stat -c %h /mnt/renamed) = 1 ]")

    # A line is appended at the file's present end, although the guest has cached an older size.
    guest.run("echo guest > /mnt/log")
    with (shared / "log").open("a") as log:
        log.write("host\n")
    guest.run("echo guest >> /mnt/log")
    assert (shared / "log").read_text() == "guest\nhost\nguest\n"

    guest.run("exec 9> /mnt/lock && flock -n 9")
    with (shared / "lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        guest.run("exec 9>&-")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert guest.attempt("flock -n /mnt/lock true")[0] != 0
    guest.run("flock -n /mnt/lock true")

"""Hashing and copying trees through driver, rings and aperture, compared with the host's files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.simguest.workload import crew

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.simguest.rig import Rig


def host_digests(root: Path) -> dict[bytes, bytes]:
    return {
        os.fsencode(path.relative_to(root)): hashlib.sha256(path.read_bytes()).digest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def guest_digests(
    rig: Rig, tag: str, path: str = "", exclude: tuple[str, ...] = ()
) -> dict[bytes, bytes]:
    found = list(rig.workload.hash_tree(tag, path, exclude))
    digests = {digest.path: digest.sha256 for digest in found}
    assert len(digests) == len(found), "a file was hashed twice"
    return digests


@pytest.fixture
def tree(shared: Path) -> Path:
    """Small files, large files, deep directories, odd names, links, an empty file and directory."""
    for number in range(150):
        place = shared / f"d{number % 7}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(os.urandom(number * 97))
    (shared / "empty dir").mkdir()
    (shared / "empty").touch()
    (shared / os.fsdecode(b"raw \xff name")).write_bytes(b"raw")
    (shared / "large").write_bytes(os.urandom(5 << 20))
    (shared / "exactly").write_bytes(os.urandom(256 << 10))
    (shared / "link").symlink_to("large")
    (shared / "dangling").symlink_to("nowhere")
    (shared / "d0" / "second name").hardlink_to(shared / "d1" / "e1" / "f1")
    os.mkfifo(shared / "pipe")
    (shared / "d2").chmod(0o711)
    (shared / "large").chmod(0o640)
    os.utime(shared / "large", ns=(1_500_000_000_123_456_789, -5_000_000_001))
    os.utime(shared / "d2", ns=(1_400_000_000_000_000_001, 1_400_000_000_000_000_002))
    return shared


def test_every_file_hashes_as_on_the_host(any_rig: Rig, tree: Path) -> None:
    any_rig.share("data", tree)
    expected = host_digests(tree)
    assert guest_digests(any_rig, "data") == expected
    moved = any_rig.counters("data").bytes_out
    assert moved > sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) - (
        6 << 20
    )


def test_a_directory_of_a_share_and_exclusions(rig: Rig, tree: Path) -> None:
    rig.share("data", tree)
    assert guest_digests(rig, "data", "d3/e0") == host_digests(tree / "d3" / "e0")
    rest = {
        path: digest
        for path, digest in host_digests(tree).items()
        if not path.startswith(b"d1/") and path != b"large"
    }
    assert guest_digests(rig, "data", "", ("d1", "large", "not there")) == rest


def test_sizes_are_those_that_were_read(rig: Rig, tree: Path) -> None:
    rig.share("data", tree)
    sizes = {digest.path: digest.size_bytes for digest in rig.workload.hash_tree("data")}
    assert sizes[b"large"] == 5 << 20
    assert sizes[b"empty"] == 0


def test_hashing_a_missing_path(rig: Rig, tree: Path) -> None:
    rig.share("data", tree)
    with pytest.raises(NotFoundError) as missing:
        list(rig.workload.hash_tree("data", "nowhere"))
    assert missing.value.reason == "SHARE_PATH"
    with pytest.raises(NotFoundError) as unknown:
        list(rig.workload.hash_tree("other"))
    assert unknown.value.reason == "TAG_UNKNOWN"
    with pytest.raises(FailedPreconditionError) as not_a_directory:
        list(rig.workload.hash_tree("data", "large"))
    assert not_a_directory.value.metadata["errno"] == str(errno.ENOTDIR)


def crew_members() -> list[str]:
    """Return the hashing threads of this process."""
    return [each.name for each in threading.enumerate() if each.name.startswith("hash-")]


def test_a_reader_that_hangs_up_leaves_no_thread(rig: Rig, tree: Path) -> None:
    rig.share("data", tree)
    digests = rig.workload.hash_tree("data")
    next(digests)
    assert len(crew_members()) == crew.WORKERS
    digests.close()
    assert crew_members() == []
    assert len(guest_digests(rig, "data")) == len(host_digests(tree))


def test_a_device_that_dies_ends_the_hashing(rig: Rig, tree: Path) -> None:
    rig.share("data", tree)
    digests = rig.workload.hash_tree("data")
    next(digests)
    rig.remove_from_host("data")
    with pytest.raises(UnavailableError):
        list(digests)


def test_a_copy_is_equal_in_all_that_it_promises(any_rig: Rig, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    any_rig.share("source", tree, "ro")
    any_rig.share("target", target)

    result = any_rig.workload.copy_tree("source", "", "target", "deep/copy")

    copy = target / "deep" / "copy"
    assert facts(copy) == facts(tree)
    assert host_digests(copy) == host_digests(tree)
    assert (copy / "d0" / "second name").samefile(copy / "d1" / "e1" / "f1")
    regular = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    assert result.files == len(regular) + 1  # and the FIFO
    assert result.symbolic_links == 2
    assert result.directories == sum(path.is_dir() for path in tree.rglob("*"))
    distinct = {path.stat().st_ino: path.stat().st_size for path in regular}
    assert result.bytes_copied == sum(distinct.values())


def facts(root: Path) -> dict[str, tuple[int, int, str]]:
    """Return type and mode, mtime, and link target of everything under a directory."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        target = str(path.readlink()) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, target)
    return found


def test_copying_twice_replaces(rig: Rig, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    rig.share("source", tree)
    rig.share("target", target)
    rig.workload.copy_tree("source", "", "target", "", ("large",))
    (target / "d0" / "e0" / "f0").write_bytes(b"longer than before, and to be replaced")
    again = rig.workload.copy_tree("source", "", "target", "")
    assert host_digests(target) == host_digests(tree)
    assert again.bytes_copied > 5 << 20


def test_a_share_is_not_copied_into_itself(rig: Rig, tree: Path) -> None:
    rig.share("data", tree)
    for source, below in (("", "inside"), ("d1", "d1/e1/copy"), ("d1", "d1")):
        with pytest.raises(InvalidArgumentError) as raised:
            rig.workload.copy_tree("data", source, "data", below)
        assert raised.value.reason == "COPY_INTO_ITSELF"
    assert not (tree / "inside").exists()
    rig.workload.copy_tree("data", "d1", "data", "d1 copy")
    assert host_digests(tree / "d1 copy") == host_digests(tree / "d1")


def test_copying_to_a_read_only_share_says_so(rig: Rig, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    rig.share("source", tree)
    rig.share("target", target, "ro")
    with pytest.raises(FailedPreconditionError) as raised:
        rig.workload.copy_tree("source", "", "target", "")
    assert raised.value.reason == "SHARE_IO"
    assert raised.value.metadata["errno"] == str(errno.EROFS)
    assert list(target.iterdir()) == []


def test_a_tag_is_taken_once_and_free_after_detaching(rig: Rig, shared: Path) -> None:
    rig.share("data", shared)
    with pytest.raises(AlreadyExistsError) as raised:
        rig.workload.attach_share("data", rig.devices["data"])
    assert raised.value.reason == "TAG_TAKEN"
    rig.workload.detach("data")
    with pytest.raises(NotFoundError):
        rig.workload.detach("data")
    rig.workload.attach_share("data", rig.devices["data"])
    assert stat.S_ISDIR(rig.workload.files("data").stat("").mode)

"""The option `case=`, where the host takes upper and lower case for the same.

A directory that folds case is made if this kernel can. Otherwise the calls that resolve a name are
replaced by ones that fold; the device under test sees no difference.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import credentials, syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.name_case import CASE_XATTR
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.memory.access import MAX_REQUEST_BYTES
from services.handshake.options import FsOptions
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.conftest import VM_ID, MakeGuest
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.devicehost.devices.fs.host_files.syscalls import Statx


OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capability.h)."""


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(FuseError) as error:
        call()
    return errno.errorcode[error.value.number]


def get_flag(guest: FuseGuest, nodeid: int) -> bytes:
    body = fuse.GETXATTR_IN.pack(100) + CASE_XATTR + b"\0"
    return guest.call(Opcode.GETXATTR, nodeid, body)


def set_flag(guest: FuseGuest, nodeid: int, value: bytes) -> None:
    body = fuse.SETXATTR_IN.pack(len(value), 0, 0) + CASE_XATTR + b"\0" + value
    guest.call(Opcode.SETXATTR, nodeid, body)


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names resolve as in a directory that folds case."""

    def folded(name: bytes, dir_fd: int) -> bytes:
        for entry in os.listdir(f"/proc/self/fd/{dir_fd}"):  # noqa: PTH208
            if entry.casefold() == os.fsdecode(name).casefold():
                return os.fsencode(entry)
        return name

    def by_name(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(name: bytes, *, dir_fd: int | None = None, **more: object) -> object:
            if dir_fd is None:
                return call(name, **more)
            return call(folded(name, dir_fd), dir_fd=dir_fd, **more)

        return wrapped

    opened, renamed, looked_at = syscalls.open_beneath, syscalls.rename, syscalls.status_at

    def open_beneath(dir_fd: int, name: bytes, flags: int, mode: int = 0) -> int:
        return opened(dir_fd, folded(name, dir_fd), flags, mode)

    def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
        renamed(old_fd, folded(old, old_fd), new_fd, new, flags)

    def status_at(dir_fd: int, name: bytes) -> Statx:
        return looked_at(dir_fd, folded(name, dir_fd))

    monkeypatch.setattr(syscalls, "open_beneath", open_beneath)
    monkeypatch.setattr(syscalls, "status_at", status_at)
    monkeypatch.setattr(syscalls, "rename", rename)
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, by_name(getattr(os, name)))


@pytest.fixture
def casefold_dir(tmp_path: Path) -> Iterator[Path]:
    """The root of an ext4 file system that can fold case."""
    image, place = tmp_path / "ext4", tmp_path / "mounted"
    place.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    mkfs = ["mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding=utf8"]
    subprocess.run([*mkfs, str(image)], check=True, timeout=60)
    done = subprocess.run(
        ["mount", "-o", "loop", image, place],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        pytest.skip(f"the kernel mounts no file system that folds case: {done.stderr.strip()}")
    yield place
    gc.collect()  # the traceback of a refusal keeps the guest, and so its descriptors
    subprocess.run(["umount", place], check=True, timeout=60)


def mounted(shared: Path, case: str, library: ctypes.CDLL | None) -> FuseGuest:
    root = Descriptor(os.open(shared, os.O_PATH | os.O_DIRECTORY))
    options = FsOptions(name="share", vm_id=VM_ID, case=case)
    limits = Limits(nodes=100, descriptors=100, handles=100)
    guest = FuseGuest(FuseSession(Share(root, options, limits, library), MAX_REQUEST_BYTES))
    guest.init()
    return guest


def test_off_leaves_names_to_the_host(shared: Path, folding: None) -> None:
    (shared / "File").write_bytes(b"x")
    guest = mounted(shared, "off", None)
    assert guest.lookup(b"FILE").nodeid == guest.lookup(b"File").nodeid
    guest.unlink(b"fILE")
    assert not (shared / "File").exists()


def test_force_finds_the_exact_name_alone(
    make_guest: MakeGuest, shared: Path, folding: None
) -> None:
    (shared / "File").write_bytes(b"x")
    (shared / "Straße").mkdir()
    (shared / "42").touch()
    guest = make_guest(case="force")
    assert refused(lambda: guest.lookup(b"FILE")) == "ENOENT"
    assert refused(lambda: guest.lookup(b"STRASSE")) == "ENOENT"
    assert refused(lambda: guest.lookup("STRAßE".encode())) == "ENOENT"
    assert open_descriptors(shared) == [], "what was found in vain is let go of"
    entry = guest.lookup(b"File")
    assert refused(lambda: guest.lookup(b"FILE")) == "ENOENT"
    assert guest.getattr(entry.nodeid).size == 1, "no lookup of the guest's was taken back"
    assert guest.lookup("Straße".encode()).attr.mode & 0o40000
    guest.lookup(b"42")
    listed = {each.name: each.entry for each in guest.readdir(guest.opendir(), plus=True)}
    assert listed[b"File"] is not None
    assert listed[b"File"].nodeid == entry.nodeid


def test_force_changes_the_exact_name_alone(
    make_guest: MakeGuest, shared: Path, folding: None
) -> None:
    (shared / "File").write_bytes(b"x")
    (shared / "Dir").mkdir()
    (shared / "other").write_bytes(b"other")
    guest = make_guest(case="force")
    assert refused(lambda: guest.unlink(b"FILE")) == "ENOENT"
    assert refused(lambda: guest.call(Opcode.RMDIR, 1, b"DIR\0")) == "ENOENT"
    assert refused(lambda: guest.rename(b"FILE", b"new")) == "ENOENT"
    assert refused(lambda: guest.rename(b"other", b"FILE")) == "EEXIST"
    assert refused(lambda: guest.create(b"FILE")) == "EEXIST", "there cannot be both"
    assert (shared / "File").read_bytes() == b"x"
    assert refused(lambda: guest.rename(b"File", b"FILE")) == "EEXIST", "nor one for the other"
    guest.rename(b"File", b"between")
    guest.rename(b"between", b"FILE")
    assert {path.name for path in shared.iterdir()} == {"FILE", "Dir", "other"}
    guest.rename(b"other", b"FILE")
    assert (shared / "FILE").read_bytes() == b"other"
    guest.unlink(b"FILE")
    guest.call(Opcode.RMDIR, 1, b"Dir\0")
    assert list(shared.iterdir()) == []


def test_force_tells_symlinks_apart_from_their_targets(
    make_guest: MakeGuest, shared: Path, folding: None
) -> None:
    (shared / "file").write_bytes(b"x")
    (shared / "Link").symlink_to("file")
    (shared / "Dangling").symlink_to("nowhere")
    guest = make_guest(case="force")
    for name in (b"LINK", b"DANGLING"):
        assert refused(lambda name=name: guest.lookup(name)) == "ENOENT"  # type: ignore[misc]
        assert refused(lambda name=name: guest.unlink(name)) == "ENOENT"  # type: ignore[misc]
        assert refused(lambda name=name: guest.rename(b"file", name)) == "EEXIST"  # type: ignore[misc]
    for name in (b"Link", b"Dangling"):
        guest.lookup(name)
        guest.unlink(name)
    assert [path.name for path in shared.iterdir()] == ["file"]


@pytest.mark.root
def test_force_reads_no_directory_whose_entries_have_one_spelling(
    make_guest: MakeGuest, shared: Path
) -> None:
    """A directory may be searched by who may not read it; and reading a large one takes long."""
    (shared / "closed").mkdir()
    (shared / "closed" / "file").touch()
    (shared / "closed" / "42").touch()
    guest = make_guest(case="force")
    directory = guest.lookup(b"closed").nodeid
    (shared / "closed").chmod(0o311)
    credentials._change(remove=OVERRIDES)
    try:
        for name in (b"file", b"42"):
            guest.lookup(name, directory)
            guest.unlink(name, directory)
    finally:
        credentials._change(add=OVERRIDES)


def test_force_where_case_counts_anyway(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "file").write_bytes(b"lower")
    guest = make_guest(case="force")
    entry, _ = guest.create(b"FILE")
    os.link(shared / "file", shared / "File")
    assert guest.lookup(b"File").nodeid == guest.lookup(b"file").nodeid != entry.nodeid
    guest.rename(b"FILE", b"file")
    assert guest.lookup(b"file").nodeid == entry.nodeid
    assert refused(lambda: guest.lookup(b"FILE")) == "ENOENT"
    guest.create("é".encode())
    guest.lookup("é".encode())
    assert refused(lambda: guest.lookup("É".encode())) == "ENOENT"


def test_dir_shows_the_flag_of_directories(make_guest: MakeGuest, shared: Path) -> None:
    (shared / "dir").mkdir()
    (shared / "file").touch()
    guest = make_guest(case="dir")
    nodeid = guest.lookup(b"dir").nodeid
    assert get_flag(guest, nodeid) == b"1", "case counts, as this file system has it"
    set_flag(guest, nodeid, b"1")
    assert refused(lambda: set_flag(guest, nodeid, b"2")) == "EINVAL"
    assert refused(lambda: set_flag(guest, nodeid, b"0")) == "ENOTSUP"
    file = guest.lookup(b"file").nodeid
    assert refused(lambda: get_flag(guest, file)) == "ENOTSUP"
    assert refused(lambda: set_flag(guest, file, b"1")) == "ENOTSUP"
    for case in ("off", "force"):
        other = make_guest(case=case)
        assert refused(lambda other=other: get_flag(other, 1)) == "ENOTSUP"  # type: ignore[misc]
    read_only = make_guest(case="dir", ro=True)
    assert refused(lambda: set_flag(read_only, 1, b"1")) == "EROFS"


FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x8008_6601, 0x4008_6602
FOLDS, NO_DUMP = 0x4000_0000, 0x40
"""FS_CASEFOLD_FL and FS_NODUMP_FL of linux/fs.h."""


class Flags:
    """The flags of a directory, in place of those that its file system has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
        self.flags = flags
        self.failure: int | None = None
        self.failure_of_setting: int | None = None
        monkeypatch.setattr(fcntl, "ioctl", self._ioctl)

    def _ioctl(self, _: int, request: int, packed: bytes) -> bytes:
        if self.failure is not None:
            raise OSError(self.failure, os.strerror(self.failure))
        if request == FS_IOC_SETFLAGS and self.failure_of_setting is not None:
            raise OSError(self.failure_of_setting, os.strerror(self.failure_of_setting))
        if request == FS_IOC_SETFLAGS:
            (self.flags,) = struct.unpack_from("i", packed)
        else:
            assert request == FS_IOC_GETFLAGS
        return struct.pack("i4x", self.flags)


def test_the_flag_is_set_and_cleared_and_others_stay(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make_guest(case="dir")
    directory = Flags(monkeypatch, NO_DUMP)
    assert get_flag(guest, 1) == b"1"
    set_flag(guest, 1, b"0")
    assert directory.flags == FOLDS | NO_DUMP
    assert get_flag(guest, 1) == b"0"
    set_flag(guest, 1, b"1")
    assert directory.flags == NO_DUMP


@pytest.mark.parametrize(
    "without", [errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get
)
def test_where_directories_have_no_flags_case_counts(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, without: int
) -> None:
    guest = make_guest(case="dir")
    directory = Flags(monkeypatch, 0)
    directory.failure = without
    assert get_flag(guest, 1) == b"1"
    set_flag(guest, 1, b"1")
    assert refused(lambda: set_flag(guest, 1, b"0")) == "ENOTSUP"


def test_an_error_of_the_file_system_is_passed_on(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make_guest(case="dir")
    directory = Flags(monkeypatch, 0)
    directory.failure = errno.EIO
    assert refused(lambda: get_flag(guest, 1)) == "EIO"
    assert refused(lambda: set_flag(guest, 1, b"1")) == "EIO"
    directory.failure, directory.failure_of_setting = None, errno.ENOTEMPTY
    assert refused(lambda: set_flag(guest, 1, b"0")) == "ENOTEMPTY"
    directory.failure_of_setting = errno.ENOTTY
    assert refused(lambda: set_flag(guest, 1, b"0")) == "ENOTSUP"


@pytest.mark.root
def test_a_directory_that_folds_case(casefold_dir: Path, library: ctypes.CDLL | None) -> None:
    guest = mounted(casefold_dir, "dir", library)
    nodeid = guest.mkdir(b"folding").nodeid
    set_flag(guest, nodeid, b"0")
    assert get_flag(guest, nodeid) == b"0"
    (casefold_dir / "folding" / "File").write_bytes(b"x")
    assert guest.lookup(b"FILE", nodeid).nodeid == guest.lookup(b"File", nodeid).nodeid
    assert refused(lambda: set_flag(guest, nodeid, b"1")) == "ENOTEMPTY"

    forced = mounted(casefold_dir, "force", library)
    nodeid = forced.lookup(b"folding").nodeid
    forced.lookup(b"File", nodeid)
    assert refused(lambda: forced.lookup(b"FILE", nodeid)) == "ENOENT"
    assert refused(lambda: forced.unlink(b"FILE", nodeid)) == "ENOENT"
    assert refused(lambda: forced.create(b"file", nodeid)) == "EEXIST"
    again = lambda: forced.rename(b"File", b"FILE", parent=nodeid, to=nodeid)  # noqa: E731
    assert refused(again) == "EEXIST"
    for old, new in ((b"File", b"between"), (b"between", b"FILE")):
        forced.rename(old, new, parent=nodeid, to=nodeid)
    forced.lookup(b"FILE", nodeid)
    forced.unlink(b"FILE", nodeid)

    set_flag(guest, guest.lookup(b"folding").nodeid, b"1")
    (casefold_dir / "folding" / "a").touch()
    (casefold_dir / "folding" / "A").touch()

"""The owner of files that are made, and set-id bits that fall."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import credentials
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError, FuseGuest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.conftest import MakeGuest

pytestmark = pytest.mark.root

USER, GROUP = 12345, 23456
ALL_CAPABILITIES = (1 << 32) - 1
OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capability.h)."""
CAP_CHOWN = 1 << 0


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_whatever_is_created_belongs_to_the_guests_user(guest: FuseGuest, shared: Path) -> None:
    guest.uid, guest.gid = USER, GROUP
    guest.create(b"file")
    guest.mkdir(b"dir")
    guest.mknod(b"fifo", stat.S_IFIFO | 0o600)
    guest.symlink(b"link", b"target")
    for name in ("file", "dir", "fifo", "link"):
        assert owner(shared / name) == (USER, GROUP), name
    guest.uid = guest.gid = 0
    guest.create(b"roots")
    assert owner(shared / "roots") == (os.geteuid(), os.getegid())


@pytest.mark.parametrize(("uid", "gid"), [(0, GROUP), (USER, 0)])
def test_each_id_counts(guest: FuseGuest, shared: Path, uid: int, gid: int) -> None:
    guest.uid, guest.gid = uid, gid
    guest.create(b"file")
    assert owner(shared / "file") == (uid, gid)


def test_renaming_needs_no_more_than_the_guest_has_checked(
    make_guest: MakeGuest, shared: Path
) -> None:
    """In a sticky directory only the owner may, whom an option can change for the guest."""
    (shared / "old").touch()
    shared.chmod(0o1777)
    guest = make_guest(uid=USER, gid=GROUP)
    guest.uid, guest.gid = USER, GROUP
    guest.rename(b"old", b"new")
    guest.rename(b"new", b"newer", flags=1)
    assert [path.name for path in shared.iterdir()] == ["newer"]


def test_the_thread_is_itself_again_afterwards(guest: FuseGuest, shared: Path) -> None:
    guest.uid, guest.gid = USER, GROUP
    guest.create(b"file")
    with pytest.raises(FuseError):
        guest.mkdir(b"file")
    (shared / "mine").write_bytes(b"")
    assert owner(shared / "mine") == (os.geteuid(), os.getegid())
    os.chown(shared / "mine", 1, 1)  # CAP_CHOWN is back


def test_other_threads_are_not_touched(shared: Path) -> None:
    inside, created = threading.Event(), threading.Event()

    def create() -> None:
        inside.wait()
        (shared / "mine").write_bytes(b"")
        created.set()

    thread = threading.Thread(target=create)
    thread.start()
    with credentials.ActAs(USER, GROUP):
        inside.set()
        created.wait()
    thread.join()
    assert owner(shared / "mine") == (os.geteuid(), os.getegid())


def test_a_group_that_only_the_guest_knows_of_suffices(guest: FuseGuest, shared: Path) -> None:
    """The guest kernel has checked; the host must not ask again with less knowledge."""
    (shared / "private").mkdir(mode=0o700)
    node = guest.lookup(b"private").nodeid
    guest.uid, guest.gid = USER, GROUP
    guest.create(b"file", node)
    assert owner(shared / "private" / "file") == (USER, GROUP)


@pytest.mark.parametrize("kind", [fuse.FUSE_EXT_GROUPS, 0])
def test_set_group_id_stays_for_a_member_of_the_directorys_group(
    guest: FuseGuest, shared: Path, kind: int
) -> None:
    os.chown(shared, 0, 777)
    shared.chmod(0o2777)
    guest.uid, guest.gid = USER, GROUP
    other = fuse.EXT_HEADER.pack(16, 1) + bytes(8)
    groups = fuse.EXT_HEADER.pack(16, kind) + struct.pack("<II", 1, 777)
    guest.extensions = other + groups
    guest.create(b"file", mode=0o102775)
    assert owner(shared / "file") == (USER, 777)
    member = kind == fuse.FUSE_EXT_GROUPS
    assert stat.S_IMODE((shared / "file").stat().st_mode) == (0o2775 if member else 0o775)


@pytest.mark.parametrize("extension", [bytes(8), b"\xff" * 16, bytes(16)])
def test_extensions_that_are_none(guest: FuseGuest, shared: Path, extension: bytes) -> None:
    guest.uid, guest.gid = USER, GROUP
    guest.extensions = extension
    guest.mkdir(b"dir")
    assert owner(shared / "dir") == (USER, GROUP)


def test_a_whiteout_belongs_to_the_guests_user(guest: FuseGuest, shared: Path) -> None:
    guest.create(b"f")
    guest.uid, guest.gid = USER, GROUP
    guest.rename(b"f", b"g", flags=4)
    assert owner(shared / "f") == (USER, GROUP)
    assert stat.S_ISCHR((shared / "f").lstat().st_mode)
    assert owner(shared / "g") == (0, 0)


def test_an_id_that_is_none_is_refused(guest: FuseGuest, shared: Path) -> None:
    guest.uid, guest.gid = 2**32 - 1, 0
    with pytest.raises(FuseError) as error:
        guest.mkdir(b"dir")
    assert error.value.number == errno.EPERM
    assert list(shared.iterdir()) == []


def test_after_a_refusal_the_thread_is_as_it_was(shared: Path) -> None:
    with pytest.raises(PermissionError), credentials.ActAs(2**32 - 1, GROUP):
        pass
    (shared / "mine").write_bytes(b"")
    assert owner(shared / "mine") == (os.geteuid(), os.getegid())


def test_a_device_host_without_the_right_squashes(
    make_guest: MakeGuest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "may_switch", lambda: False)
    guest = make_guest()
    guest.uid, guest.gid = USER, GROUP
    guest.create(b"file")
    assert owner(shared / "file") == (os.geteuid(), os.getegid())


def test_files_of_other_users_are_served(guest: FuseGuest, shared: Path) -> None:
    path = shared / "theirs"
    path.write_bytes(b"text")
    os.chown(path, USER, GROUP)
    path.chmod(0o400)
    entry = guest.lookup(b"theirs")
    assert (entry.attr.uid, entry.attr.gid) == (USER, GROUP)
    assert guest.read(guest.open(entry.nodeid), 9) == b"text"
    guest.setattr(entry.nodeid, fuse.FATTR_UID | fuse.FATTR_GID, uid=7, gid=2**32 - 1)
    assert owner(path) == (7, GROUP)


def test_access_is_the_askers(guest: FuseGuest, shared: Path) -> None:
    (shared / "f").write_bytes(b"")
    (shared / "f").chmod(0o640)
    os.chown(shared / "f", 0, GROUP)
    node = guest.lookup(b"f").nodeid
    guest.uid, guest.gid = USER, GROUP
    guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(os.R_OK))
    with pytest.raises(FuseError) as error:
        guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(os.W_OK))
    assert error.value.number == errno.EACCES


@pytest.mark.parametrize(
    ("asker", "owners", "mode"),
    [((USER, 0), (USER, 1), 0o600), ((0, GROUP), (1, GROUP), 0o060)],
)
def test_access_is_by_each_id(
    guest: FuseGuest, shared: Path, asker: tuple[int, int], owners: tuple[int, int], mode: int
) -> None:
    for name, ids in (("own", owners), ("other", (1, 1))):
        (shared / name).touch()
        (shared / name).chmod(mode)
        os.chown(shared / name, *ids)
    guest.uid, guest.gid = asker
    own, other = guest.lookup(b"own").nodeid, guest.lookup(b"other").nodeid
    credentials._change(remove=OVERRIDES)
    try:
        guest.call(Opcode.ACCESS, own, fuse.ACCESS_IN.pack(os.R_OK | os.W_OK))
        with pytest.raises(FuseError) as error:
            guest.call(Opcode.ACCESS, other, fuse.ACCESS_IN.pack(os.R_OK))
    finally:
        credentials._change(add=OVERRIDES)
    assert error.value.number == errno.EACCES


def test_a_device_host_without_the_right_asks_for_itself(
    make_guest: MakeGuest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "may_switch", lambda: False)
    (shared / "f").touch(mode=0o600)
    guest = make_guest()
    guest.uid, guest.gid = USER, GROUP
    node = guest.lookup(b"f").nodeid
    guest.call(Opcode.ACCESS, node, fuse.ACCESS_IN.pack(os.R_OK | os.W_OK))


def test_set_id_bits_fall_when_the_guest_asks(guest: FuseGuest, shared: Path) -> None:
    path = shared / "f"
    entry, handle = guest.create(b"f", mode=0o106755)
    guest.write(handle, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755, "root may keep them"
    guest.write(handle, b"x", write_flags=fuse.FUSE_WRITE_KILL_SUIDGID)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6755)
    guest.setattr(entry.nodeid, fuse.FATTR_SIZE, size=1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755, "root may keep them"
    guest.setattr(entry.nodeid, fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID, size=0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6755)
    guest.open(entry.nodeid, os.O_WRONLY | os.O_TRUNC, fuse.FUSE_OPEN_KILL_SUIDGID)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6755)
    guest.write(handle, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755, "the capability is back"


@pytest.mark.parametrize(("uid", "left"), [(0, 0o6755), (USER, 0o755)])
def test_set_id_bits_fall_where_the_guest_cannot_ask(
    guest: FuseGuest, shared: Path, uid: int, left: int
) -> None:
    path = shared / "f"
    entry, handle = guest.create(b"f", mode=0o106755)
    _, source = guest.create(b"source")
    guest.write(source, b"data")
    guest.uid = uid
    guest.call(Opcode.FALLOCATE, entry.nodeid, fuse.FALLOCATE_IN.pack(handle, 0, 10, 0))
    assert stat.S_IMODE(path.stat().st_mode) == left
    path.chmod(0o6755)
    body = fuse.COPY_FILE_RANGE_IN.pack(source, 0, entry.nodeid, handle, 0, 4, 0)
    guest.call(Opcode.COPY_FILE_RANGE, entry.nodeid, body)
    assert stat.S_IMODE(path.stat().st_mode) == left


@pytest.mark.parametrize(
    ("rights", "kept"),
    [
        ({}, credentials._CAP_DAC_OVERRIDE),
        ({"override": False}, 0),
        ({"member": True}, credentials._CAP_DAC_OVERRIDE | credentials._CAP_FSETID),
        ({"override": False, "member": True}, credentials._CAP_FSETID),
    ],
)
def test_who_acts_as_a_user_keeps_only_the_rights_that_are_asked_for(
    rights: dict[str, bool], kept: int
) -> None:
    files = credentials._CAP_DAC_OVERRIDE | credentials._CAP_FSETID
    before = effective()
    with credentials.ActAs(USER, GROUP, **rights):
        assert effective()[0] & files == kept
    assert effective() == before


@pytest.mark.parametrize("way", [credentials.ActAs(0, GROUP), credentials.KillSuidGid()])
def test_a_capability_that_a_thread_has_dropped_stays_dropped(
    way: credentials.ActAs | credentials.KillSuidGid,
) -> None:
    dropped = CAP_CHOWN | credentials._CAP_DAC_OVERRIDE

    def act() -> None:
        credentials._change(remove=dropped)
        before = effective()
        with way:
            assert not effective()[0] & dropped
        assert effective() == before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result()


def test_a_change_of_capabilities_that_is_refused_keeps_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container's seccomp profile may refuse the system calls."""
    for name in ("capget", "capset"):
        with monkeypatch.context() as patch:
            patch.setattr(credentials._libc, name, refusing(errno.EPERM))
            with pytest.raises(PermissionError), credentials.KillSuidGid():
                pass


def test_where_setgroups_has_no_known_number_the_process_leaves_its_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "other")
    before = os.getgroups()
    os.setgroups([GROUP])
    try:
        credentials.leave_groups()
        assert os.getgroups() == []
    finally:
        os.setgroups(before)


def test_groups_that_a_user_namespace_keeps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials._libc, "syscall", refusing(errno.EPERM))
    credentials.leave_groups()
    monkeypatch.setattr(credentials._libc, "syscall", refusing(errno.ENOMEM))
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        credentials.leave_groups()


def refusing(number: int) -> Callable[..., int]:
    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    return refuse


def thread_with(permitted: tuple[int, int], work: Callable[[], None]) -> None:
    """Run something on a thread that has these capabilities alone, in two words of 32 bits."""

    def run() -> None:
        data = credentials._capabilities()
        for word, mask in zip(data, permitted, strict=True):
            word.effective = word.permitted = word.permitted & mask
        header = credentials._Header(credentials._CAPABILITY_VERSION_3, 0)
        assert credentials._libc.capset(ctypes.byref(header), data) == 0
        work()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


def effective() -> tuple[int, int]:
    low, high = credentials._capabilities()
    return low.effective, high.effective


def test_a_capability_comes_back_whatever_others_there_are() -> None:
    """Containers have none of those above 31 by default."""

    def write() -> None:
        with credentials.KillSuidGid():
            assert effective() == (0, 0)
        assert effective() == (credentials._CAP_FSETID, 0)

    thread_with((credentials._CAP_FSETID, 0), write)


def test_a_capability_that_is_not_permitted_is_not_asked_for() -> None:
    """Asking would be EPERM, for a write that is done."""

    def write() -> None:
        before = effective()
        assert before[0] == 0
        with credentials.KillSuidGid():
            pass
        assert effective() == before

    thread_with((0, ALL_CAPABILITIES), write)


@pytest.mark.parametrize(
    ("lacking", "may"),
    [(0, True), (1 << 6, False), (1 << 7, False), (1 << 6 | 1 << 7, False), (1 << 4, True)],
)
def test_acting_as_any_user_takes_the_right_to_set_both_ids(lacking: int, may: bool) -> None:
    """CAP_SETGID is 6, and CAP_SETUID 7 (capability.h)."""
    found: list[bool] = []
    permitted = ALL_CAPABILITIES & ~lacking, ALL_CAPABILITIES
    thread_with(permitted, lambda: found.append(credentials.may_switch()))
    assert found == [may]

"""A guest whose root is hostile: what it may leave on the host that has effect there.

It works on shares as mount points of a real kernel, and each result is looked at on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from services.devicehost import fastpath
from tests.support.mounted_shares import MountedShares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.fuse, pytest.mark.root]

WAYS = ("native", "python", "aggregate")
_numbers = itertools.count()
SET_IDS = stat.S_ISUID | stat.S_ISGID
A_USER = 65533
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep, as struct vfs_cap_data of revision 2 has it."""
MEANT_FOR_KERNELS = {
    "security.capability": CAPABILITY,
    "security.selinux": b"system_u:object_r:bin_t:s0\0",
    "security.ima": b"\x01" + bytes(20),
    "trusted.overlay.opaque": b"y",
    "trusted.overlay.redirect": b"/etc",
}
ACL = bytes.fromhex(
    "0200000001000600ffffffff02000600fdff000004000400ffffffff10000600ffffffff20000400ffffffff"
)
"""user::rw-, user:65533:rw-, group::r--, mask::rw-, other::r--, as system.posix_acl_access."""


class Place(NamedTuple):
    """A share: on the host, and where the guest has mounted it."""

    host: Path
    guest: Path


@pytest.fixture(scope="module", params=WAYS)
def mount(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Place]]:
    """Mounts a share with some options; the directories are on a disk where all users see them."""
    if request.param != "python" and fastpath.library is None:
        pytest.skip("the native fast path was not built: no C compiler (cc)")
    prefix = ("env", f"{fastpath.SWITCH}=0") if request.param == "python" else ()
    top = Path(tempfile.mkdtemp(prefix="ph-", dir="/var/tmp"))
    top.chmod(0o755)
    made: dict[str, Place] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, top)
        shares = stack.enter_context(MountedShares(top, prefix))

        def add(options: str) -> Place:
            if options not in made:
                host = top / f"share-{len(made)}"
                host.mkdir()
                if request.param == "aggregate":
                    root = shares.mount_aggregate(host.name, {"one": (host, options)})
                    made[options] = Place(host, root / "one")
                else:
                    made[options] = Place(host, shares.mount(host.name, host, options))
            return made[options]

        yield add


@pytest.fixture
def place(mount: Callable[[str], Place]) -> Place:
    """A directory of its own for each test, in a share with the default options."""
    share = mount("cache=none")
    name = f"test-{next(_numbers)}"
    (share.host / name).mkdir()
    (share.host / name).chmod(0o755)
    return Place(share.host / name, share.guest / name)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def user_runs(program: Path) -> int:
    """Return the effective user id that a program gets that an ordinary user starts."""
    done = subprocess.run(
        [program, "-u"], user=A_USER, group=A_USER, extra_groups=[], capture_output=True, check=True
    )
    return int(done.stdout)


def plant_by_chmod(path: Path) -> None:
    shutil.copy("/usr/bin/id", path)
    os.chown(path, 0, 0)
    path.chmod(0o6755)


def plant_by_create(path: Path) -> None:
    before = os.umask(0)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o6755)
    os.write(fd, Path("/usr/bin/id").read_bytes())
    os.close(fd)
    os.umask(before)


def plant_by_mknod(path: Path) -> None:
    before = os.umask(0)
    os.mknod(path, stat.S_IFREG | 0o6755)
    os.umask(before)
    with path.open("r+b") as file:
        file.write(Path("/usr/bin/id").read_bytes())


def plant_by_link_of_unnamed(path: Path) -> None:
    before = os.umask(0)
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o6755)
    os.umask(before)
    os.write(fd, Path("/usr/bin/id").read_bytes())
    parent = os.open(path.parent, os.O_PATH)
    os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=parent, follow_symlinks=True)
    os.close(parent)
    os.close(fd)


def plant_by_rename(path: Path) -> None:
    plant_by_chmod(path.with_name("elsewhere"))
    path.with_name("elsewhere").rename(path)


PLANTS = (
    plant_by_chmod,
    plant_by_create,
    plant_by_mknod,
    plant_by_link_of_unnamed,
    plant_by_rename,
)


@pytest.mark.parametrize("plant", PLANTS)
def test_no_set_uid_program_is_planted(place: Place, plant: Callable[[Path], None]) -> None:
    path = place.guest / plant.__name__
    plant(path)
    on_host = place.host / path.name
    assert mode_of(on_host) & 0o777 == 0o755
    assert mode_of(on_host) & SET_IDS == 0
    assert mode_of(path) == mode_of(on_host), "the guest reads back what is stored"
    assert user_runs(on_host) == A_USER
    on_host.chmod(0o4755)
    assert user_runs(on_host) == 0, "a set-uid program of this disk does get root's rights"


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"#!/bin/sh\n")


def overwrite_mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = b"mine"
        mapped.flush()


def overwrite_by_copying(path: Path) -> None:
    with path.with_name("source").open("w+b") as source, path.open("r+b") as file:
        source.write(b"#!/bin/sh\n")
        source.flush()
        assert os.copy_file_range(source.fileno(), file.fileno(), 10, 0, 0) == 10


def zero(path: Path) -> None:
    with path.open("r+b") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        assert libc.fallocate(file.fileno(), 3, 0, 4096) == 0  # KEEP_SIZE | PUNCH_HOLE


def change_by_chmod(path: Path) -> None:
    path.chmod(0o4755)


CHANGES: tuple[Callable[[Path], object], ...] = (
    overwrite,
    overwrite_mapped,
    overwrite_by_copying,
    zero,
    change_by_chmod,
    lambda path: path.write_bytes(b"#!/bin/sh\n"),
    lambda path: os.truncate(path, 100),
    lambda path: os.chown(path, 1000, 0),
    lambda path: os.setxattr(path, "system.posix_acl_access", ACL),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_set_uid_program_of_the_host_is_none_after_a_change(
    place: Place, change: Callable[[Path], object]
) -> None:
    name = f"tool-{CHANGES.index(change)}"
    on_host = place.host / name
    shutil.copy("/usr/bin/id", on_host)
    on_host.chmod(0o6750)
    assert mode_of(place.guest / name) == 0o6750
    change(place.guest / name)
    assert mode_of(on_host) & SET_IDS == 0


def test_file_capabilities_of_the_host_end_with_a_change(place: Place) -> None:
    for name, change in (("chmod", lambda path: path.chmod(0o755)), ("write", overwrite)):
        on_host = place.host / name
        shutil.copy("/usr/bin/id", on_host)
        os.setxattr(on_host, "security.capability", CAPABILITY)
        change(place.guest / name)
        assert os.listxattr(on_host) == []


def test_a_set_gid_directory_hands_down_its_group(place: Place) -> None:
    (place.guest / "team").mkdir()
    os.chown(place.guest / "team", 0, 1234)
    (place.guest / "team").chmod(0o2775)
    (place.guest / "team" / "inner").mkdir()
    (place.guest / "team" / "file").touch()
    assert mode_of(place.host / "team") == 0o2775
    assert mode_of(place.host / "team" / "inner") & stat.S_ISGID
    assert (place.host / "team" / "file").stat().st_gid == 1234


def test_no_device_node_is_made(place: Place) -> None:
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        for device in (os.makedev(1, 5), os.makedev(0, 1)):
            with pytest.raises(PermissionError):
                os.mknod(place.guest / "device", kind | 0o666, device)
    with pytest.raises(PermissionError):
        os.mknod(place.guest / "device", stat.S_IFBLK | 0o666, 0)
    assert list(place.host.iterdir()) == []


def test_what_is_no_device_is_made(place: Place) -> None:
    os.mknod(place.guest / "whiteout", stat.S_IFCHR | 0o600, 0)
    os.mkfifo(place.guest / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place.guest / "socket"))
    kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in place.host.iterdir()}
    assert kinds == {"whiteout": stat.S_IFCHR, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
    with pytest.raises(OSError, match="No such device"):
        (place.host / "whiteout").open()


def test_a_device_node_of_the_host_is_nobody_elses(place: Place) -> None:
    os.mknod(place.host / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    node = place.guest / "zero"
    with pytest.raises(PermissionError):
        node.chmod(0o666)
    with pytest.raises(PermissionError):
        os.chown(node, A_USER, A_USER)
    with pytest.raises(PermissionError):
        os.setxattr(node, "system.posix_acl_access", ACL)
    status = (place.host / "zero").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
    assert os.listxattr(place.host / "zero") == []
    os.utime(node, (1, 1))


def test_no_attribute_for_the_hosts_kernel_is_set(place: Place) -> None:
    (place.host / "file").touch()
    for name, value in MEANT_FOR_KERNELS.items():
        with pytest.raises(OSError) as refused:
            os.setxattr(place.guest / "file", name, value)
        assert refused.value.errno == errno.EOPNOTSUPP, name
    assert os.listxattr(place.host / "file") == []


def test_attributes_of_the_host_are_neither_seen_nor_removed(place: Place) -> None:
    path = place.guest / "file"
    (place.host / "file").touch()
    for name, value in MEANT_FOR_KERNELS.items():
        os.setxattr(place.host / "file", name, value)
    os.setxattr(path, "user.mine", b"1")
    assert os.listxattr(path) == ["user.mine"]
    for name in MEANT_FOR_KERNELS:
        for call in (os.getxattr, os.removexattr):
            with pytest.raises(OSError) as refused:
                call(path, name)
            assert refused.value.errno == errno.EOPNOTSUPP, name
    assert set(os.listxattr(place.host / "file")) == {*MEANT_FOR_KERNELS, "user.mine"}


def listed(path: Path, room: int) -> int:
    """Call listxattr(2) with so much room; returns its result, or minus its errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.listxattr.restype = ctypes.c_ssize_t
    length = libc.listxattr(os.fsencode(path), ctypes.create_string_buffer(room or 1), room)
    return int(length) if length >= 0 else -ctypes.get_errno()


def test_mapped_attributes_are_the_guests_alone(mount: Callable[[str], Place]) -> None:
    place = mount("cache=none;xattr=map")
    path, on_host = place.guest / "file", place.host / "file"
    on_host.touch()
    os.setxattr(on_host, "trusted.of.the.host", b"1")
    os.setxattr(on_host, "user.virtiofs.user.of.another", b"1")
    for name, value in {**MEANT_FOR_KERNELS, "user.mine": b"1"}.items():
        os.setxattr(path, name, value)
        assert os.getxattr(path, name) == value
    mapped = {f"user.virtiofs.{name}" for name in MEANT_FOR_KERNELS}
    before = {"trusted.of.the.host", "user.virtiofs.user.of.another"}
    assert set(os.listxattr(on_host)) == {*mapped, "user.mine", *before}
    assert set(os.listxattr(path)) == {*MEANT_FOR_KERNELS, "user.mine"}
    length = sum(len(name) + 1 for name in (*MEANT_FOR_KERNELS, "user.mine"))
    assert listed(path, 0) == listed(path, length) == length
    assert listed(path, length - 1) == -errno.ERANGE
    with pytest.raises(PermissionError):
        os.setxattr(path, "user.virtiofs.security.capability", CAPABILITY)
    os.removexattr(path, "security.ima")
    assert "user.virtiofs.security.ima" not in os.listxattr(on_host)


@pytest.mark.parametrize(
    "change", [overwrite, lambda path: os.chown(path, 1000, 0), lambda path: os.truncate(path, 9)]
)
def test_mapped_file_capabilities_end_with_a_change(
    mount: Callable[[str], Place], change: Callable[[Path], None]
) -> None:
    place = mount("cache=none;xattr=map")
    path = place.guest / "program"
    path.write_bytes(b"1" * 100)
    os.setxattr(path, "security.capability", CAPABILITY)
    change(path)
    assert os.listxattr(place.host / "program") == []


def test_no_attribute_at_all(mount: Callable[[str], Place]) -> None:
    place = mount("cache=none;xattr=off")
    (place.host / "file").touch()
    os.setxattr(place.host / "file", "user.of.the.host", b"1")
    assert os.listxattr(place.guest / "file") == []
    for call in (os.getxattr, lambda path, name: os.setxattr(path, name, b"")):
        with pytest.raises(OSError) as refused:
            call(place.guest / "file", "user.of.the.host")
        assert refused.value.errno == errno.EOPNOTSUPP


def test_attributes_without_bounds_take_no_file_capabilities(
    mount: Callable[[str], Place],
) -> None:
    place = mount("cache=none;xattr=all")
    path = place.guest / "file"
    path.touch()
    for name, value in MEANT_FOR_KERNELS.items():
        if name == "security.capability":
            with pytest.raises(PermissionError):
                os.setxattr(path, name, value)
        else:
            os.setxattr(path, name, value)
    assert {*os.listxattr(place.host / "file"), "security.capability"} == set(MEANT_FOR_KERNELS)


def test_a_share_that_allows_all(mount: Callable[[str], Place]) -> None:
    place = mount("cache=none;suid;dev;xattr=all")
    for plant in PLANTS:
        plant(place.guest / plant.__name__)
        wanted = mode_of(place.guest / plant.__name__)
        assert mode_of(place.host / plant.__name__) == wanted
    assert user_runs(place.host / "plant_by_chmod") == 0
    os.mknod(place.guest / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert (place.host / "zero").stat().st_rdev == os.makedev(1, 5)
    for name, value in MEANT_FOR_KERNELS.items():
        os.setxattr(place.guest / "plant_by_chmod", name, value)
    assert set(os.listxattr(place.host / "plant_by_chmod")) == set(MEANT_FOR_KERNELS)


def test_metadata_leaves_the_hosts_own_files_alone(mount: Callable[[str], Place]) -> None:
    """What the guest sets is kept beside the host's values, and changes none that has effect."""
    place = mount("cache=none;metadata")
    plant_by_chmod(place.guest / "kept")
    assert mode_of(place.guest / "kept") == 0o6755
    assert mode_of(place.host / "kept") & SET_IDS == 0
    os.mknod(place.guest / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert stat.S_ISREG((place.host / "zero").lstat().st_mode)
    shutil.copy("/usr/bin/id", place.host / "tool")
    (place.host / "tool").chmod(0o4755)
    overwrite(place.guest / "tool")
    assert mode_of(place.host / "tool") & SET_IDS == 0
    os.mknod(place.host / "own", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with pytest.raises(PermissionError):
        (place.guest / "own").chmod(0o666)

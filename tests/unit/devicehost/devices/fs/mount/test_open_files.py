"""Open files and directories, by the handles that a guest is given."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.mount.mount import Mount
from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.wire.fuse import Opcode
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.fs.fuse_guest import FuseError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest


def test_a_handle_is_never_given_twice(guest: FuseGuest, shared: Path) -> None:
    (shared / "file").touch()
    node = guest.lookup(b"file").nodeid
    given = []
    for _ in range(3):
        given.append(guest.open(node, os.O_RDONLY))
        guest.release(given[-1])
        given.append(guest.opendir())
        guest.release(given[-1], Opcode.RELEASEDIR)
    assert len(set(given)) == len(given)
    for handle in given:
        with pytest.raises(FuseError) as error:
            guest.read(handle, 1)
        assert error.value.number == errno.EBADF


def test_a_directory_is_no_file_and_a_file_no_directory(guest: FuseGuest, shared: Path) -> None:
    (shared / "file").touch()
    file, directory = guest.open(guest.lookup(b"file").nodeid, os.O_RDONLY), guest.opendir()
    for attempt in (
        lambda: guest.readdir(file),
        lambda: guest.read(directory, 1),
        lambda: guest.release(file, Opcode.RELEASEDIR),
        lambda: guest.release(directory),
    ):
        with pytest.raises(FuseError) as error:
            attempt()
        assert error.value.number == errno.EBADF


def test_a_node_stays_while_a_request_has_it(guest: FuseGuest, shared: Path) -> None:
    entry, handle = guest.create(b"file")
    mount = guest.session.mount
    assert isinstance(mount, Mount)
    node = mount.open_files.get(handle, OpenFile).node
    guest.release(handle)
    guest.forget(entry.nodeid)
    assert os.fstat(node.fd).st_ino == entry.attr.ino
    del node
    assert open_descriptors(shared) == []

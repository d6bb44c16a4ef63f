"""ACLs, umask and set-id bits on shares of every kind, and where a share has no ACLs."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conformance.calls import ALICE, TEAM
from tests.conformance.comparison import compare
from tests.conformance.conftest import ON_DISK, TEST_DEADLINE_S, Place, directory
from tests.conformance.tables import read_tables
from tests.support.acls import DEFAULT, acl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.actor import Actor
    from tests.support.mounted_shares import MountedShares

pytestmark = pytest.mark.fuse

CASES = [case for case in read_tables() if case.name.startswith("acl: ")]
BOB_READS = "u::rw-,u:bob:r--,g::---,m::r--,o::---"


class Shares(NamedTuple):
    """The processes that serve shares, and a directory that every user may enter."""

    served_by: MountedShares
    root: Path


@pytest.fixture(params=["natively", "by Python"])
def serving(
    shares: MountedShares, plain_shares: MountedShares, request: pytest.FixtureRequest
) -> Iterator[Shares]:
    served_by = shares if request.param == "natively" else plain_shares
    with directory(ON_DISK) as root, served_by.deadline(TEST_DEADLINE_S):
        yield Shares(served_by, root)


def make(root: Path, name: str) -> Path:
    made = root / name
    made.mkdir()
    made.chmod(0o777)
    return made


@contextmanager
def ramfs(place: Path) -> Iterator[Path]:
    """A file system without ACLs."""
    subprocess.run(["mount", "-t", "ramfs", "none", place], check=True, timeout=30)
    place.chmod(0o777)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


@pytest.mark.parametrize(
    "options", ["cache=none;suid", "cache=always;suid", "cache=auto;writeback;suid"]
)
def test_whatever_the_guest_keeps(serving: Shares, options: str, actors: dict[str, Actor]) -> None:
    shared, plain = make(serving.root, "shared"), make(serving.root, "plain")
    mounted = serving.served_by.mount(serving.root.name, shared, options)
    for case in CASES:
        compare(case, Place(options, shared, mounted, plain), actors)


@pytest.mark.parametrize("cache", ["none", "auto", "always"])
def test_behind_an_aggregate(serving: Shares, cache: str, actors: dict[str, Actor]) -> None:
    """One of its shares has no ACLs, which does not concern the other."""
    shared, plain, other = (make(serving.root, name) for name in ("shared", "plain", "other"))
    mounted = serving.served_by.mount_aggregate(
        serving.root.name,
        {"share": (shared, f"cache={cache};suid"), "other": (other, "metadata;cache=auto")},
    )
    for case in CASES:
        compare(case, Place(cache, shared, mounted / "share", plain), actors)
    assert_none(mounted / "other", actors)


def test_a_host_file_system_without_acls(serving: Shares, actors: dict[str, Actor]) -> None:
    with ramfs(make(serving.root, "shared")) as shared:
        mounted = serving.served_by.mount(serving.root.name, shared)
        assert_none(mounted, actors)


def test_one_below_a_share(serving: Shares, actors: dict[str, Actor]) -> None:
    shared = make(serving.root, "shared")
    with ramfs(make(shared, "below")):
        mounted = serving.served_by.mount(serving.root.name, shared)
        assert_none(mounted / "below", actors)
        (mounted / "f").touch()
        actors["root"].enter(mounted)
        assert actors["root"].call("setacl", "f", BOB_READS) == "ok"


def test_a_share_that_keeps_modes_of_its_own(serving: Shares, actors: dict[str, Actor]) -> None:
    """The host's ACL says nothing about them."""
    shared = make(serving.root, "shared")
    os.setxattr(shared, DEFAULT, acl("u::rwx,g::rwx,o::rwx"))
    mounted = serving.served_by.mount(serving.root.name, shared, "metadata")
    assert_none(mounted, actors)
    alice = actors["alice"]
    alice.enter(mounted)
    assert alice.call("umask", "027") == "ok"
    assert alice.call("create", "masked", "0666") == "ok"
    assert alice.call("mkdir", "below", "0777") == "ok"
    assert (alice.call("mode", "masked"), alice.call("mode", "below")) == ("0640", "0750")
    assert alice.call("listxattr", ".") == "none"


def test_options_that_mask_modes_mask_acls(serving: Shares, actors: dict[str, Actor]) -> None:
    shared = make(serving.root, "shared")
    mounted = serving.served_by.mount(serving.root.name, shared, "fmask=026;dmask=077")
    root, bob = actors["root"], actors["bob"]
    for actor in (root, bob):
        actor.enter(mounted.parent)
    file = f"{mounted.name}/f"
    assert root.call("create", file) == "ok"
    assert root.call("setacl", file, "u::rw-,u:bob:rw-,g::rw-,m::rw-,o::rw-") == "ok"
    assert root.call("mode", file) == "0640"
    assert root.call("getacl", file) == "u::rw-,u:20002:rw-,g::r--,m::r--,o::---"
    assert bob.call("open", file, "rdonly") == "EACCES", "the directory's own mode is masked"
    text = "u::rwx,u:bob:rwx,g::rwx,m::rwx,o::rwx"
    assert root.call("setacl", mounted.name, text, "default") == "ok"
    assert root.call("getacl", mounted.name, "default") == text.replace("bob", "20002")


def assert_none(place: Path, actors: dict[str, Actor]) -> None:
    """Assert that no ACL can be set in a directory, and that modes count."""
    root, alice, bob = (actors[name] for name in ("root", "alice", "bob"))
    for actor in (root, alice, bob):
        actor.enter(place)
    assert root.call("create", "f", "0640") == "ok"
    assert root.call("chown", "f", str(ALICE + 7), str(TEAM)) == "ok"
    assert root.call("setacl", "f", BOB_READS) == "ENOTSUP"
    assert root.call("setacl", ".", "u::rwx,g::---,o::---", "default") == "ENOTSUP"
    assert root.call("dropacl", "f") == "ENOTSUP"
    assert root.call("getacl", "f") in ("ENODATA", "ENOTSUP")
    assert root.call("mode", "f") == "0640"
    assert alice.call("open", "f", "rdonly") == "ok", "of the group"
    assert alice.call("open", "f", "wronly") == "EACCES"
    assert bob.call("open", "f", "rdonly") == "EACCES"
    assert alice.call("create", "g", "0666") == "ok"
    assert alice.call("mode", "g") == "0644"

"""Shares: their host paths, options and identity."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
)
from services.vm_owner.shares import ShareSpec, canonical_directory, share_key

if TYPE_CHECKING:
    from pathlib import Path


def test_a_path_is_made_canonical(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert canonical_directory(f"{tmp_path}/link/../link/") == str(tmp_path / "real")


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("missing", NotFoundError, "SHARE_PATH_NOT_FOUND"),
        ("loop", NotFoundError, "SHARE_PATH_NOT_FOUND"),
        ("file", FailedPreconditionError, "SHARE_PATH_NOT_A_DIRECTORY"),
        ("file/below", FailedPreconditionError, "SHARE_PATH_NOT_A_DIRECTORY"),
    ],
)
def test_a_path_of_no_directory_is_refused(
    tmp_path: Path, name: str, kind: type[PortholeError], reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(kind, match=name) as refused:
        canonical_directory(str(tmp_path / name))
    assert refused.value.reason == reason


@pytest.mark.parametrize("path", ["", "relative", "./x", "/a\0b"])
def test_a_relative_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not absolute, or has a NUL") as refused:
        canonical_directory(path)
    assert refused.value.reason == "SHARE_PATH_SYNTAX"


@pytest.mark.parametrize("path", ["/" + "./" * 2048, "/" + "é" * 2048])
def test_a_path_longer_than_the_kernel_takes_is_refused(path: str) -> None:
    """The standard library resolves a path in a time that is quadratic in its length."""
    with pytest.raises(InvalidArgumentError, match="more than 4095") as refused:
        canonical_directory(path)
    assert refused.value.reason == "SHARE_PATH_SYNTAX"
    assert len(refused.value.message) < 1024


def test_a_path_of_the_greatest_length_is_resolved() -> None:
    assert canonical_directory("/" + "./" * 2047) == "/"


def test_a_path_to_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """No message could carry it."""
    (tmp_path / "\udcff").mkdir()
    (tmp_path / "link").symlink_to("\udcff")
    with pytest.raises(InvalidArgumentError, match="is not UTF-8") as refused:
        canonical_directory(str(tmp_path / "link"))
    assert refused.value.reason == "SHARE_PATH_SYNTAX"
    refused.value.message.encode()


def test_a_path_of_endless_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for number in range(1, sys.getrecursionlimit()):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    with pytest.raises(NotFoundError, match="oo many levels of symbolic links") as refused:
        canonical_directory(str(tmp_path / str(number)))
    assert refused.value.reason == "SHARE_PATH_NOT_FOUND"


def test_the_tag_is_no_part_of_a_shares_identity_but_the_options_are(tmp_path: Path) -> None:
    here = str(tmp_path)
    one = share_key(ShareSpec(here, "one", "umask=022;ro"))
    assert one == share_key(ShareSpec(here, "two", "ro;umask=22"))
    assert one != share_key(ShareSpec(here, "one", "ro"))
    assert one != share_key(ShareSpec(here, "one", "umask=022;ro", elevated=True))


def test_bad_options_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="symlinkroot") as refused:
        share_key(ShareSpec(str(tmp_path), "", "colour=red"))
    assert refused.value.reason == "OPTION_UNKNOWN"

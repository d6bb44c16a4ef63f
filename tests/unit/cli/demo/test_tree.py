from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from services.cli.demo.tree import (
    copy_differences,
    copy_files,
    differences,
    digest_file,
    read_tree,
    tree_portion,
)
from services.cli.views import FileDigest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("a")
    (root / "b").write_bytes(b"\0" * 5000)
    (root / "link").symlink_to("pkg/a.py")
    (root / "dangling").symlink_to("nowhere")
    (root / "site-packages").mkdir()
    (root / "site-packages" / "foreign.py").write_text("x")
    return root


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("a")
    (root / "b").write_bytes(b"\0" * 5000)
    (root / "link").symlink_to("pkg/a.py")
    (root / "dangling").symlink_to("nowhere")
    return root


def test_a_tree_has_files_modes_and_links_but_not_what_is_left_out(tree: Path) -> None:
    (tree / "b").chmod(0o640)
    found = read_tree(tree, ["site-packages"])
    assert found.files.keys() == {b"pkg/a.py", b"b"}
    assert found.modes[b"b"] == 0o640
    assert found.modes.keys() == {b"pkg", b"pkg/a.py", b"b"}
    assert found.links == {b"link": b"pkg/a.py", b"dangling": b"nowhere"}
    assert found.total_bytes == 5001


def test_only_entries_of_the_root_are_left_out(tree: Path) -> None:
    (tree / "pkg" / "site-packages").mkdir()
    (tree / "pkg" / "site-packages" / "own.py").write_text("")
    assert b"pkg/site-packages/own.py" in read_tree(tree, ["site-packages"]).files


def test_a_name_that_is_not_utf8_is_read(tree: Path) -> None:
    raw = os.fsencode(tree) + b"/\xff\xfe"
    with open(raw, "wb"):  # noqa: PTH123
        pass
    assert b"\xff\xfe" in read_tree(tree).files


def test_equal_digests_differ_in_nothing(tree: Path) -> None:
    found = read_tree(tree)
    assert differences(found, dict(found.files)) == []


def test_a_wrong_digest_a_missing_and_a_superfluous_file_are_distinguished(tree: Path) -> None:
    found = read_tree(tree, ["site-packages"])
    guest = {b"b": FileDigest(5000, "f" * 64), b"extra": FileDigest(1, "0" * 64)}
    lines = differences(found, guest)
    assert [line.split(":")[0] for line in lines] == ["b", "extra", "pkg/a.py"]
    assert "guest ffffffffffff (5000 bytes)" in lines[0]
    assert "host has no such file" in lines[1]
    assert "guest has no such file" in lines[2]


def test_a_file_that_changed_on_the_host_meanwhile_is_compared_anew(tree: Path) -> None:
    found = read_tree(tree)
    (tree / "b").write_text("new")
    (tree / "fresh").write_text("fresh")
    (tree / "pkg" / "a.py").unlink()
    guest = {
        **found.files,
        b"b": digest_file(os.fsencode(tree / "b")),
        b"fresh": digest_file(os.fsencode(tree / "fresh")),
    }
    del guest[b"pkg/a.py"]
    assert differences(found, guest) == []


def test_an_equal_copy_differs_in_nothing(tree: Path, copy: Path) -> None:
    assert copy_differences(read_tree(tree, ["site-packages"]), read_tree(copy)) == []


def test_every_way_in_which_a_copy_can_differ_is_found(tree: Path, copy: Path) -> None:
    source = read_tree(tree, ["site-packages"])

    def after(change: str) -> list[str]:
        return copy_differences(source, read_tree(copy)) or [f"{change} was not found"]

    (copy / "b").write_bytes(b"\1" * 5000)
    assert len(after("content")) == 1
    assert "b: source" in after("content")[0]
    (copy / "b").write_bytes(b"\0" * 5000)

    (copy / "pkg").chmod(0o700)
    assert after("mode") == ["pkg: source mode 0755, copy 0700"]
    (copy / "pkg").chmod(0o755)

    (copy / "link").unlink()
    (copy / "link").symlink_to("elsewhere")
    assert after("link") == ["link: source link b'pkg/a.py', copy b'elsewhere'"]
    (copy / "link").unlink()
    (copy / "link").symlink_to("pkg/a.py")

    (copy / "more").mkdir()
    assert after("directory") == ["more: directory on one side only"]


def test_a_portion_is_whole_entries_of_the_root(tree: Path) -> None:
    (tree / "pkg" / "c.py").write_text("c")
    whole = read_tree(tree, ["site-packages"])
    part = tree_portion(whole, 2)
    assert part.files.keys() == {b"b"}
    assert part.modes.keys() == {b"b"}
    assert part.links.keys() == {b"link", b"dangling"}
    assert part.exclude == ("site-packages", "pkg")
    assert copy_differences(part, read_tree(tree, part.exclude)) == []


def test_a_portion_of_a_small_tree_is_all_of_it(tree: Path) -> None:
    whole = read_tree(tree)
    assert tree_portion(whole, 100) == whole


def test_a_copy_has_what_the_tree_lists_and_no_more(tree: Path, tmp_path: Path) -> None:
    (tree / "deep" / "site-packages").mkdir(parents=True, exist_ok=True)
    (tree / "deep" / "site-packages" / "e.py").write_text("e")
    whole = read_tree(tree, ["site-packages"])
    copy_files(whole, tree, tmp_path / "copy")
    assert copy_differences(whole, read_tree(tmp_path / "copy")) == []
    assert not (tmp_path / "copy" / "site-packages").exists()
    assert (tmp_path / "copy" / "deep" / "site-packages" / "e.py").read_text() == "e"

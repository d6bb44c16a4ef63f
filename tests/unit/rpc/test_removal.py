"""Removing directories: all that is in them, and nothing of what is mounted there."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from services.rpc.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_tree_goes_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    gone = tmp_path / "gone"
    (gone / "deep/deeper").mkdir(parents=True)
    (gone / "deep/file").write_text("gone")
    (gone / "to file").symlink_to(kept / "file")
    (gone / "deep/to directory").symlink_to(kept)
    os.mkfifo(gone / "fifo")
    assert remove_tree(gone) == {}
    assert not gone.exists()
    assert (kept / "file").read_text() == "kept"
    assert remove_tree(gone) == {}, "nothing is there"
    assert remove_tree(gone / "below/nothing") == {}
    (tmp_path / "link").symlink_to(kept)
    assert remove_tree(tmp_path / "link") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that is also seen at `place`/deep/mounted, on the same file system."""
    shared = tmp_path / "shared"
    place = tmp_path / "place/deep/mounted"
    for path in (shared, place):
        path.mkdir(parents=True)
    (shared / "file").write_text("precious")
    (place.parent / "file").write_text("ours")
    (tmp_path / "place/other").mkdir()
    subprocess.run(["mount", "--bind", shared, place], check=True)
    yield shared
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
def test_what_is_mounted_stays(tmp_path: Path, shared: Path) -> None:
    place = tmp_path / "place"
    assert remove_tree(place) == {place / "deep/mounted": "something is mounted there"}
    assert (shared / "file").read_text() == "precious"
    assert sorted(path.name for path in place.rglob("*")) == ["deep", "file", "mounted"]
    assert remove_tree(place / "deep/mounted") == {
        place / "deep/mounted": "something is mounted there"
    }
    with pytest.raises(OSError, match="busy"):
        shutil.rmtree(place)
    assert not (shared / "file").exists(), "which is why"


@pytest.mark.root
def test_what_is_mounted_through_a_file_is_named(tmp_path: Path, shared: Path) -> None:
    target = tmp_path / "place/target"
    target.write_text("")
    subprocess.run(["mount", "--bind", shared / "file", target], check=True)
    try:
        assert set(remove_tree(tmp_path / "place")) == {target, tmp_path / "place/deep/mounted"}
        assert (shared / "file").read_text() == "precious"
    finally:
        subprocess.run(["umount", "-l", target], check=True)

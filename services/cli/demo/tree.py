"""Directory trees as the host sees them: their digests, and the differences between two trees.

The host's trees are what the demonstration compares everything with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from services.cli.views import FileDigest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tree:
    """One directory tree at the time of reading. Paths are raw bytes, relative to its root.

    Attributes:
        root: Directory that was read.
        exclude: Names of entries of the root that were left out.
        files: Digest of every readable regular file.
        modes: Permission bits of every file and directory.
        links: Target of every symbolic link.
        unreadable: Files and directories that this process may not read.
    """

    root: Path
    exclude: tuple[str, ...] = ()
    files: dict[bytes, FileDigest] = field(default_factory=dict)
    modes: dict[bytes, int] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)
    unreadable: set[bytes] = field(default_factory=set)

    @property
    def total_bytes(self) -> int:
        """Bytes in all files."""
        return sum(digest.size_bytes for digest in self.files.values())


def tree_portion(tree: Tree, files: int) -> Tree:
    """Return a part of a tree with about this number of files, made of whole entries of its root.

    Entries are taken by name while they fit. The others are in `exclude` of the result.
    """
    sizes = Counter(_entry(path) for path in tree.files)
    taken, left_out = 0, set()
    for entry in sorted({_entry(path) for path in (*tree.modes, *tree.links)}):
        if taken + sizes[entry] <= files:
            taken += sizes[entry]
        else:
            left_out.add(entry)

    def kept(listed: dict[bytes, T]) -> dict[bytes, T]:
        return {path: value for path, value in listed.items() if _entry(path) not in left_out}

    return Tree(
        tree.root,
        (*tree.exclude, *sorted(map(os.fsdecode, left_out))),
        files=kept(tree.files),
        modes=kept(tree.modes),
        links=kept(tree.links),
        unreadable={path for path in tree.unreadable if _entry(path) not in left_out},
    )


def digest_file(path: bytes) -> FileDigest:
    """Read one file.

    Raises:
        OSError: It cannot be read.
    """
    with Path(os.fsdecode(path)).open("rb") as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        return FileDigest(size_bytes, hashlib.file_digest(stream, "sha256").hexdigest())


def read_tree(root: Path, exclude: Iterable[str] = ()) -> Tree:
    """Read a whole tree without following links. Sockets, pipes and devices are not read."""
    tree = Tree(root, tuple(exclude))
    top = os.fsencode(root)
    for path, entry in _walk(top, b"", {os.fsencode(name) for name in tree.exclude}, tree):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            tree.links[path] = os.readlink(entry.path)  # noqa: PTH115 - raw bytes
            continue
        tree.modes[path] = stat.S_IMODE(mode)
        if stat.S_ISREG(mode):
            try:
                tree.files[path] = digest_file(entry.path)
            except PermissionError:
                tree.unreadable.add(path)
    return tree


def copy_files(tree: Tree, source: Path, target: Path) -> None:
    """Copy the entries of a tree from one directory to another, with modes, times and links.

    Raises:
        OSError: An entry cannot be read or written.
    """
    left_out = {*map(os.fsencode, tree.exclude), *tree.unreadable}

    def ignore(directory: str, names: list[str]) -> set[str]:
        below = os.fsencode(Path(directory).relative_to(source))
        return {n for n in names if os.path.normpath(below + b"/" + os.fsencode(n)) in left_out}

    shutil.copytree(source, target, symlinks=True, ignore=ignore, dirs_exist_ok=True)


def differences(host: Tree, guest: Mapping[bytes, FileDigest]) -> list[str]:
    """Return the files that a guest read differently from the host, one line each.

    A file that has changed on the host since `host` was read is compared anew.
    """
    found = []
    for path in sorted(host.files.keys() | guest.keys()):
        expected, got = host.files.get(path), guest.get(path)
        if expected != got and _now(host, path) != got:
            found.append(f"{os.fsdecode(path)}: host {_said(expected)}, guest {_said(got)}")
    return found


def copy_differences(source: Tree, copy: Tree) -> list[str]:
    """Return the differences of a copy from its source: contents, modes, links; one line each."""
    found = [
        f"{os.fsdecode(path)}: source {_said(source.files.get(path))}, "
        f"copy {_said(copy.files.get(path))}"
        for path in sorted(source.files.keys() | copy.files.keys())
        if source.files.get(path) != copy.files.get(path)
        and _now(source, path) != copy.files.get(path)
    ]
    readable = source.modes.keys() - source.unreadable
    for path in sorted(readable & copy.modes.keys()):
        if source.modes[path] != copy.modes[path]:
            found.append(
                f"{os.fsdecode(path)}: source mode {source.modes[path]:04o}, "
                f"copy {copy.modes[path]:04o}"
            )
    for path in sorted((readable ^ copy.modes.keys()) - source.files.keys() - copy.files.keys()):
        found.append(f"{os.fsdecode(path)}: directory on one side only")
    for path in sorted(source.links.keys() | copy.links.keys()):
        if source.links.get(path) != copy.links.get(path):
            found.append(
                f"{os.fsdecode(path)}: source link {source.links.get(path)!r}, "
                f"copy {copy.links.get(path)!r}"
            )
    return found


def _walk(
    top: bytes, below: bytes, exclude: set[bytes], tree: Tree
) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    try:
        entries = sorted(os.scandir(os.path.join(top, below)), key=lambda entry: entry.name)  # noqa: PTH118
    except PermissionError:
        tree.unreadable.add(below)
        return
    for entry in entries:
        if not below and entry.name in exclude:
            continue
        path = below + b"/" + entry.name if below else entry.name
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(top, path, exclude, tree)


def _entry(path: bytes) -> bytes:
    return path.partition(b"/")[0]


def _now(tree: Tree, path: bytes) -> FileDigest | None:
    try:
        return digest_file(os.fsencode(tree.root) + b"/" + path)
    except OSError:
        return None


def _said(digest: FileDigest | None) -> str:
    return f"{digest.sha256[:12]} ({digest.size_bytes} bytes)" if digest else "has no such file"

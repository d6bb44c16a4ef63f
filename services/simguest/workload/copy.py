"""Copying a tree between shares through the guest's driver, like `cp -a` but without owners.

Owns the order of the copy: directories and special files first, then contents by a crew, then hard
links, then modes and times of directories, deepest first. Must not know gRPC.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from services.simguest.fs import streams
from services.simguest.workload.crew import Crew
from services.simguest.workload.files import Batch, File, is_small, naming, read_small, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from services.simguest.fs.driver import Pending
    from services.simguest.fs.operations import FsOperations
    from services.simguest.fs.paths import ShareFiles
    from services.simguest.fs.replies import Node
    from services.wire.fuse import Attr

    _Created = tuple[Node, int]

_NSEC: Final = 1_000_000_000


class CopyResult(NamedTuple):
    """Counts of a copy; further names of a hard-linked file count as files without bytes."""

    directories: int
    files: int
    symbolic_links: int
    bytes_copied: int


class _Place(NamedTuple):
    """The target of a copy: a directory and a name in it."""

    parent: int
    name: bytes


class _CopyBatch(Batch):
    """A batch of small files, each with its target."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[_Place] = []

    def add_copy(self, file: File, place: _Place) -> bool:
        """Add a file, and return whether the batch is complete."""
        self.places.append(place)
        return self.add(file)


def copy_tree(
    source: ShareFiles,
    source_path: str,
    target: ShareFiles,
    target_path: str,
    exclude: Collection[bytes],
) -> CopyResult:
    """Copy everything under one directory into another, which is made if it is missing.

    Args:
        source: Share to read.
        source_path: Directory in it.
        target: Share to write; directories are merged, all other names replaced.
        target_path: Directory in it, not inside the source.
        exclude: Names directly in the source directory that are not copied.

    Raises:
        OSError: The device's errno, with the path; a partial copy stays.
        PortholeError: A device is gone.
    """
    target.make_directories(target_path)
    with source.walk(source_path) as top, target.walk(target_path) as top_target:
        crew = Crew[CopyResult]("copy")
        copying = _Copying(source.operations, target.operations, crew)
        try:
            with crew:
                crew.add(partial(copying.scan, File(b"", top), top_target.nodeid, exclude))
                parts = list(crew.results())
            copying.finish()
        finally:
            copying.forget()
    return CopyResult(*(sum(column) for column in zip(*parts, strict=True)))


class _Copying:
    """The jobs of one copy. Each gives back the lookups of its nodes, even when it fails.

    Targets that are needed again at the end, directories and files with further names, are kept
    until `forget`.
    """

    def __init__(self, source: FsOperations, target: FsOperations, crew: Crew[CopyResult]) -> None:
        self._source = source
        self._target = target
        self._crew = crew
        self._directories: list[tuple[int, Attr]] = []
        self._first: dict[int, bytes] = {}
        self._first_target: dict[int, int] = {}
        self._links: list[tuple[bytes, int, _Place]] = []
        self._kept: list[int] = []

    def finish(self) -> None:
        """Make hard links, then set modes and times of directories."""
        for path, ino, place in self._links:
            link = partial(self._target.link, self._first_target[ino], *place)
            with naming(path):
                self._target.forget(self._make(place, link).nodeid)
        # Each directory was added before those in it.
        for nodeid, attr in reversed(self._directories):
            self._begin_attributes(nodeid, attr).result()

    def forget(self) -> None:
        """Give back the lookups of the targets that were kept."""
        self._target.forget_many(self._kept)

    # Jobs of the crew.

    def scan(self, directory: File, target: int, exclude: Collection[bytes]) -> None:
        """Copy the contents of a directory whose target exists, mostly by adding jobs."""
        path, node = directory
        self._directories.append((target, node.attr))
        batch = _CopyBatch()
        done = []
        directories = symbolic_links = files = 0
        with naming(path):
            found = list(streams.scan(self._source, node.nodeid))
        for name, child in found:
            file = File(path + b"/" * bool(path) + name, child)
            place = _Place(target, name)
            mode = child.attr.mode
            if name in exclude or self._crew.abandoned:
                done.append(child.nodeid)
            elif stat.S_ISDIR(mode):
                directories += 1
                self._crew.add(partial(self.directory, file, place))
            elif not stat.S_ISREG(mode):
                done.append(child.nodeid)
                symbolic_links += stat.S_ISLNK(mode)
                files += not stat.S_ISLNK(mode)
                with naming(file.path):
                    self._copy_special(child, place)
            elif self._is_further_name(file):
                done.append(child.nodeid)
                files += 1
                self._links.append((file.path, child.attr.ino, place))
            elif not is_small(self._source, child):
                self._crew.add(partial(self.large, file, place))
            elif batch.add_copy(file, place):
                self._crew.add(partial(self.small, batch))
                batch = _CopyBatch()
        self._crew.add(partial(self.small, batch))
        self._source.forget_many(done)
        self._crew.yield_result(CopyResult(directories, files, symbolic_links, 0))

    def directory(self, file: File, place: _Place) -> None:
        """Make a directory and copy its contents."""
        try:
            if not self._crew.abandoned:
                with naming(file.path):
                    target = self._make_directory(place)
                self.scan(file, target, ())
        finally:
            self._source.forget(file.node.nodeid)

    def large(self, file: File, place: _Place) -> None:
        """Copy one file, reading ahead and writing behind."""
        try:
            if not self._crew.abandoned:
                with naming(file.path), ExitStack() as ends:
                    created = self._begin_create(place).result()
                    ends.callback(self._end, file, created)
                    writer = streams.Writer(self._target, created[0].nodeid, created[1])
                    for chunk in streams.read_file(self._source, file.node):
                        writer.add(chunk)
                    writer.finish()
                    for request in self._begin_end(file, created):
                        request.result()
                self._crew.yield_result(CopyResult(0, 1, 0, writer.size_bytes))
        finally:
            self._source.forget(file.node.nodeid)

    def small(self, batch: _CopyBatch) -> None:
        """Copy files that each fit into one READ; each step is taken for all of them together."""
        files = batch.files
        try:
            if not self._crew.abandoned:
                with ExitStack() as ends:
                    size_bytes = self._copy_batch(files, batch.places, ends)
                self._crew.yield_result(CopyResult(0, len(files), 0, size_bytes))
        finally:
            self._source.forget_many([file.node.nodeid for file in files])

    def _copy_batch(self, files: list[File], places: list[_Place], ends: ExitStack) -> int:
        creating = [
            (file.path, self._begin_create(place))
            for file, place in zip(files, places, strict=True)
        ]
        created = settle(creating, lambda at, made: ends.callback(self._end, files[at], made))
        writers = []
        for (node, fh), (_, chunks) in zip(created, read_small(self._source, files), strict=True):
            writers.append(streams.Writer(self._target, node.nodeid, fh))
            for chunk in chunks:
                writers[-1].add(chunk)
        ending = []
        for file, made, writer in zip(files, created, writers, strict=True):
            with naming(file.path):
                writer.finish()
            ending.append((file, self._begin_end(file, made)))
        for file, requests in ending:
            with naming(file.path):
                for request in requests:
                    request.result()
        return sum(writer.size_bytes for writer in writers)

    # Single names.

    def _is_further_name(self, file: File) -> bool:
        attr = file.node.attr
        return attr.nlink > 1 and self._first.setdefault(attr.ino, file.path) != file.path

    def _make_directory(self, place: _Place) -> int:
        # Writable for now; its own mode is set once its contents are copied.
        try:
            node = self._target.mkdir(*place, stat.S_IRWXU)
        except FileExistsError:
            node = self._target.lookup(*place)
        self._kept.append(node.nodeid)
        if not stat.S_ISDIR(node.attr.mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node.nodeid

    def _copy_special(self, node: Node, place: _Place) -> None:
        """Copy a symbolic link, or make a FIFO, socket or device like the source's."""
        attr = node.attr
        link = stat.S_ISLNK(attr.mode)
        if link:
            text = self._source.readlink(node.nodeid)
            made = self._make(place, partial(self._target.symlink, *place, text))
        else:
            make = partial(self._target.mknod, *place, attr.mode, attr.rdev)
            made = self._make(place, make)
        try:
            self._begin_attributes(made.nodeid, attr, mode=not link).result()
        finally:
            self._target.forget(made.nodeid)

    def _make(self, place: _Place, make: Callable[[], Node]) -> Node:
        try:
            return make()
        except FileExistsError:
            self._target.unlink(*place)
            return make()

    def _begin_create(self, place: _Place) -> Pending[_Created]:
        flags = os.O_WRONLY | os.O_TRUNC
        return self._target.begin_create(*place, stat.S_IRUSR | stat.S_IWUSR, flags)

    def _begin_end(self, file: File, created: _Created) -> tuple[Pending[None], Pending[Attr]]:
        node, fh = created
        flush = self._target.begin_flush(node.nodeid, fh)
        return flush, self._begin_attributes(node.nodeid, file.node.attr)

    def _end(self, file: File, created: _Created) -> None:
        node, fh = created
        self._target.release(node.nodeid, fh)
        if file.node.attr.nlink > 1:
            self._first_target[file.node.attr.ino] = node.nodeid
            self._kept.append(node.nodeid)
        else:
            self._target.forget(node.nodeid)

    def _begin_attributes(self, nodeid: int, attr: Attr, *, mode: bool = True) -> Pending[Attr]:
        atime_ns, mtime_ns = _times(attr)
        return self._target.begin_setattr(
            nodeid,
            mode=stat.S_IMODE(attr.mode) if mode else None,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
        )


def _times(attr: Attr) -> tuple[int, int]:
    # Seconds before 1970 travel as 64-bit two's complement (kernel: fs/fuse/inode.c).
    def nanoseconds(seconds: int, rest: int) -> int:
        signed = seconds - (1 << 64) if seconds >> 63 else seconds
        return signed * _NSEC + rest

    return nanoseconds(attr.atime, attr.atimensec), nanoseconds(attr.mtime, attr.mtimensec)

"""Hashing every regular file of a share through the guest's driver.

Owns the division of the work into jobs: directories, batches of small files, large files. Must not
know gRPC.
"""

from __future__ import annotations

import hashlib
import stat
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from services.simguest.fs import streams
from services.simguest.workload.crew import Crew
from services.simguest.workload.files import Batch, File, is_small, naming, read_small

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    from services.simguest.fs.operations import FsOperations
    from services.simguest.fs.paths import ShareFiles


class FileDigest(NamedTuple):
    """The digest of one regular file.

    Attributes:
        path: Relative to the directory that is hashed, raw bytes.
        size_bytes: Number of bytes that were read.
        sha256: Digest of these bytes, 32 bytes.
    """

    path: bytes
    size_bytes: int
    sha256: bytes


def hash_tree(
    files: ShareFiles, path: str, exclude: Collection[bytes]
) -> Generator[FileDigest, None, None]:
    """Hash all regular files under a directory, in no particular order; no link is followed.

    Args:
        files: The share.
        path: Directory in it.
        exclude: Names directly in that directory that are not hashed.

    Raises:
        OSError: The device's errno, with the path.
        PortholeError: The device is gone.
    """
    with files.walk(path) as top, Crew[FileDigest]("hash") as crew:
        work = _Hashing(files.operations, crew)
        crew.add(partial(work.scan, top.nodeid, b"", exclude))
        yield from crew.results()


class _Hashing:
    """The jobs. Each gives back the lookups of its nodes, even when it fails."""

    def __init__(self, operations: FsOperations, crew: Crew[FileDigest]) -> None:
        self._operations = operations
        self._crew = crew

    def scan(self, nodeid: int, prefix: bytes, exclude: Collection[bytes]) -> None:
        """Add jobs for everything in a directory."""
        batch = Batch()
        unwanted = []
        try:
            with naming(prefix):
                for name, node in streams.scan(self._operations, nodeid):
                    file = File(prefix + name, node)
                    kind = stat.S_IFMT(node.attr.mode)
                    if name in exclude or kind not in (stat.S_IFDIR, stat.S_IFREG):
                        unwanted.append(node.nodeid)
                    elif kind == stat.S_IFDIR:
                        self._crew.add(partial(self.directory, file))
                    elif not is_small(self._operations, node):
                        self._crew.add(partial(self.large, file))
                    elif batch.add(file):
                        self._crew.add(partial(self.small, batch.files))
                        batch = Batch()
        finally:
            self._crew.add(partial(self.small, batch.files))
            self._operations.forget_many(unwanted)

    def directory(self, file: File) -> None:
        """Scan a directory below the top one."""
        try:
            if not self._crew.abandoned:
                self.scan(file.node.nodeid, file.path + b"/", ())
        finally:
            self._operations.forget(file.node.nodeid)

    def large(self, file: File) -> None:
        """Hash one file, reading ahead."""
        try:
            if not self._crew.abandoned:
                with naming(file.path):
                    self._hash(file.path, streams.read_file(self._operations, file.node))
        finally:
            self._operations.forget(file.node.nodeid)

    def small(self, files: list[File]) -> None:
        """Hash a batch."""
        try:
            if not self._crew.abandoned:
                for file, chunks in read_small(self._operations, files):
                    self._hash(file.path, chunks)
        finally:
            self._operations.forget_many([file.node.nodeid for file in files])

    def _hash(self, path: bytes, chunks: Iterable[bytes]) -> None:
        digest, size_bytes = hashlib.sha256(), 0
        for data in chunks:
            digest.update(data)
            size_bytes += len(data)
        self._crew.yield_result(FileDigest(path, size_bytes, digest.digest()))

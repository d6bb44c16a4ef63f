"""The regular files of a tree, and reading many small ones at once.

Owns batching: the requests of one batch are in flight together, so that a tree of small files does
not wait for one reply after the other. Must not know the use of the contents.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from services.handshake.errors import PortholeError
from services.simguest.fs import streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from services.simguest.fs.driver import Pending
    from services.simguest.fs.operations import FsOperations
    from services.simguest.fs.replies import Node

T = TypeVar("T")

BATCH_FILES: Final = 32
BATCH_BYTES: Final = 1 << 20
"""A batch of small files is complete at BATCH_FILES files or BATCH_BYTES bytes."""


class File(NamedTuple):
    """A regular file that was found; its holder must forget one lookup of the node."""

    path: bytes
    node: Node


class Batch:
    """Small files, collected until they are enough to be read together."""

    def __init__(self) -> None:
        self.files: list[File] = []
        self._size_bytes = 0

    def add(self, file: File) -> bool:
        """Add a file, and return whether the batch is complete."""
        self.files.append(file)
        self._size_bytes += file.node.attr.size
        return len(self.files) == BATCH_FILES or self._size_bytes >= BATCH_BYTES


def is_small(operations: FsOperations, node: Node) -> bool:
    """Return whether one READ gets all of a file, and its end."""
    return node.attr.size < operations.driver.max_read


@contextmanager
def naming(path: bytes) -> Iterator[None]:
    """Add the path to errors of the device."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path.decode(errors="replace")) from error


def read_small(
    operations: FsOperations, files: Sequence[File]
) -> Iterator[tuple[File, list[bytes]]]:
    """Read small files; all are opened together, then all are read together.

    Yields:
        Each file with its contents, in the order given.

    Raises:
        OSError: The device's errno, with the path.
        PortholeError: The device is gone.
    """
    with ExitStack() as releases:
        opening = [(path, operations.begin_open(node.nodeid)) for path, node in files]
        handles = settle(
            opening,
            lambda at, fh: releases.callback(operations.release, files[at].node.nodeid, fh),
        )
        reads = []
        for (_, node), fh in zip(files, handles, strict=True):
            size = streams.read_size(operations, node.attr.size)
            reads.append((operations.begin_read(node.nodeid, fh, 0, size), size))
        for file, fh, (request, size) in zip(files, handles, reads, strict=True):
            with naming(file.path):
                chunks = [request.result()]
                if len(chunks[0]) == size:  # it has grown since it was found
                    chunks += streams.read_all(operations, file.node.nodeid, fh, size, size)
            yield file, chunks


def settle(
    requests: Iterable[tuple[bytes, Pending[T]]], taken: Callable[[int, T], object]
) -> list[T]:
    """Wait for many requests whose results must be released, for instance handles.

    Args:
        requests: The path and the request of each.
        taken: Called with index and value of every result, before any failure is raised; it
            arranges for the result to be released.

    Raises:
        OSError: The first failure, with its path.
        PortholeError: The device is gone.
    """
    results: list[T] = []
    failures: list[Exception] = []
    for place, (path, request) in enumerate(requests):
        try:
            with naming(path):
                results.append(request.result())
        except (OSError, PortholeError) as error:
            failures.append(error)
        else:
            taken(place, results[-1])
    if failures:
        raise failures[0]
    return results

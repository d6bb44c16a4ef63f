"""The file: its tables, how it is opened, and that one dashboard has it.

Must not know what is written when.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1
"""Version of the tables, `user_version` of the file. Another version is not opened."""

PAGE_BYTES: Final = 8192
"""Size of a page: a span has about 1 KiB, and a quarter of a page has place in a node."""

WAL_LIMIT_BYTES: Final = 64 << 20
"""The write-ahead log is cut to this after a checkpoint."""

BUSY_S: Final = 5.0
"""Longest wait for a lock of the file, which only recovery and a foreign program hold for long."""

_MAGIC: Final = b"SQLite format 3\0"

_TABLES: Final = """
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    service TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE trace_sources (
    trace_id BLOB NOT NULL,
    source_id INTEGER NOT NULL,
    PRIMARY KEY (trace_id, source_id)
) WITHOUT ROWID;
CREATE INDEX trace_sources_by_source ON trace_sources (source_id);
CREATE TABLE traces (
    trace_id BLOB NOT NULL PRIMARY KEY,
    has_vm INTEGER NOT NULL,
    received_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX traces_by_age ON traces (has_vm, received_ms);
CREATE TABLE spans (
    trace_id BLOB NOT NULL,
    span_id BLOB NOT NULL,
    source_id INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (trace_id, span_id)
) WITHOUT ROWID;
CREATE TABLE vms (
    vm_id TEXT NOT NULL PRIMARY KEY,
    verdict TEXT NOT NULL,
    rules TEXT NOT NULL DEFAULT '[]',
    problem TEXT NOT NULL DEFAULT '',
    kind TEXT NOT NULL DEFAULT '',
    kernel TEXT NOT NULL DEFAULT '',
    token TEXT NOT NULL DEFAULT '',
    devices INTEGER NOT NULL DEFAULT 0,
    lives INTEGER NOT NULL DEFAULT 0,
    spans INTEGER NOT NULL DEFAULT 0,
    services TEXT NOT NULL DEFAULT '[]',
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    latched_us INTEGER,
    last_ms INTEGER NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0,
    unjudged INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX vms_by_start ON vms (started_ms DESC, vm_id);
CREATE INDEX vms_by_verdict ON vms (verdict, started_ms DESC, vm_id);
CREATE INDEX vms_by_kernel ON vms (kernel);
CREATE INDEX vms_unjudged ON vms (unjudged) WHERE unjudged > 0;
CREATE TABLE vm_traces (
    vm_id TEXT NOT NULL,
    trace_id BLOB NOT NULL,
    PRIMARY KEY (vm_id, trace_id)
) WITHOUT ROWID;
CREATE INDEX vm_traces_by_trace ON vm_traces (trace_id);
CREATE TABLE vm_rules (
    rule TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    PRIMARY KEY (rule, vm_id)
) WITHOUT ROWID;
CREATE INDEX vm_rules_by_vm ON vm_rules (vm_id);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    vm_id TEXT NOT NULL,
    name TEXT NOT NULL,
    unit TEXT NOT NULL,
    kind TEXT NOT NULL,
    description TEXT NOT NULL,
    service TEXT NOT NULL,
    device_id TEXT NOT NULL,
    device_class TEXT NOT NULL,
    tag TEXT NOT NULL,
    attributes TEXT NOT NULL,
    seen_ms INTEGER NOT NULL
);
CREATE INDEX series_by_vm ON series (vm_id, name);
CREATE INDEX series_by_age ON series (seen_ms);
CREATE TABLE points (
    series_id INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    value,
    PRIMARY KEY (series_id, at_ms)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept.

    Attributes:
        keep_ms: What was received longer ago is removed.
        keep_bytes: With more than this in the file, the oldest is removed.
    """

    keep_ms: int
    keep_bytes: int


class FileLock:
    """The mark that one dashboard has a file: an advisory lock on a file beside it.

    Raises:
        FailedPreconditionError: DATABASE_IN_USE.
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise FailedPreconditionError(
                "DATABASE_IN_USE",
                f"another dashboard has {path}; stop it, or choose another --database",
                path=str(path),
            ) from None

    def release(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def open_to_write(path: Path) -> sqlite3.Connection:
    """Open the file, and make it if it does not exist; it is its user's alone.

    Raises:
        FailedPreconditionError: DATABASE_UNUSABLE when it is no database, or of another version.
        OSError: It cannot be made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        beginning = os.read(fd, len(_MAGIC))
    finally:
        os.close(fd)
    if beginning not in (b"", _MAGIC):
        # SQLite takes a short file for an empty one.
        raise _unusable(path, "it is no SQLite file")
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, str(error)) from None
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open the file, which a writer has open; nothing can be written.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_S,
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how many bytes of the file are in use."""
    [[used]] = connection.execute(
        "SELECT (page_count - freelist_count) * page_size"
        " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    )
    return int(used)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # These two are of the file, and take effect before it has a table only.
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit survives the process without a flush; after a loss of power the last may be missing.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    [[version]] = connection.execute("PRAGMA user_version")
    [[tables]] = connection.execute("SELECT count(*) FROM sqlite_schema")
    if version == 0 and tables == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;"
        )
    elif version != VERSION:
        raise _unusable(path, f"it has version {version}, and this dashboard has {VERSION}")


def _unusable(path: Path, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "DATABASE_UNUSABLE",
        f"{path} is not used: {why}; move it away, or choose another --database",
        path=str(path),
    )

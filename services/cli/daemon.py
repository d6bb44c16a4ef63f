"""What a process of `porthole device` has of a daemon: its log, and a file with its process id.

Must not know devices or command lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSLOG: Final = "/dev/log"

_log = logging.getLogger(__name__)


class LogLevel(StrEnum):
    """Least severity that is logged; also by the names that virtiofsd has for it."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    WARNING = "warning"
    ERROR = "error"
    OFF = "off"


_SEVERITIES: Final = {
    LogLevel.TRACE: logging.DEBUG,
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARN: logging.WARNING,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.OFF: logging.CRITICAL + 1,
}


def start_log(
    name: str, level: LogLevel, notes: tuple[str, ...] = (), *, syslog: bool = False
) -> None:
    """Log to stderr, or to the syslog if there is one.

    Args:
        name: "fs" or "net".
        level: The least severity that is logged.
        notes: The first lines.
        syslog: Whether to log to SYSLOG.
    """
    handler: logging.Handler | None = None
    missing = ""
    if syslog:
        try:
            handler = _syslog_handler()
        except OSError as error:
            missing = f"--syslog: {SYSLOG}: {error.strerror or error}; the log goes to stderr"
    # A syslog has times and levels of its own.
    form = "%(message)s" if handler else "%(levelname)s: %(message)s"
    prefix = f"porthole-{name}[{os.getpid()}]: " if handler else f"%(asctime)s device-{name} "
    logging.basicConfig(
        level=_SEVERITIES[level],
        format=prefix + form,
        handlers=[handler] if handler else None,
    )
    if missing:
        _log.warning("%s", missing)
    for note in notes:
        _log.info("%s", note)


def _syslog_handler() -> logging.Handler:
    """Return a handler that sends to SYSLOG, and writes to stderr what SYSLOG does not take.

    Raises:
        OSError: Nobody reads SYSLOG. SysLogHandler would say so for each line, with a traceback.
    """
    import socket
    from logging.handlers import SysLogHandler

    class Handler(SysLogHandler):
        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
            stderr.handle(record)

    stderr = logging.StreamHandler()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.connect(SYSLOG)
    return Handler(SYSLOG, SysLogHandler.LOG_USER)


@contextlib.contextmanager
def pid_file(socket_path: Path | None) -> Iterator[None]:
    """Have a file with the process id beside the socket, for who starts the process and ends it.

    It is made under another name, so that nobody reads half of it, and no link is followed.
    """
    if socket_path is None:
        yield
        return
    path = Path(f"{socket_path.absolute()}.pid")
    part = Path(f"{path}.{os.getpid()}")
    try:
        with part.open("x") as file:
            file.write(f"{os.getpid()}\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        _log.warning("%s was not written: %s", path, error.strerror)
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

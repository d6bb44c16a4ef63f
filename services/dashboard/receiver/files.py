"""Files of spans, taken as if each of their lines had been sent.

Must not know what becomes of a line.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.gzipped import unpack
from services.rpc.inputs import read_bounded

if TYPE_CHECKING:
    from pathlib import Path

    from services.dashboard.receiver.intake import Intake

FILE_LIMIT_BYTES: Final = 256 << 20
"""Longest file, also when it is unpacked: it is in memory."""

_REMEDY: Final = "load the file of each run by itself, or send its lines to /v1/traces"


async def take_file(intake: Intake, path: Path) -> None:
    """Keep the spans of a file of lines of OTLP JSON, as `--trace-file` writes them.

    Args:
        intake: Where they go.
        path: A file or a pipe, also as gzip.

    Raises:
        OSError: It cannot be read.
        InvalidArgumentError: INPUT_TOO_LARGE, INPUT_TOO_SLOW; TRACE_SYNTAX when it is damaged gzip;
            OTLP_SYNTAX, which names the line. The lines before are kept.
        UnavailableError: STORE_FAILED.
    """
    content = await asyncio.to_thread(_read, path)
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            await intake.take_traces(line, as_json=True)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                "OTLP_SYNTAX", f"{path} line {number}: {error.message}", path=str(path), line=number
            ) from None


def _read(path: Path) -> bytes:
    content = read_bounded(path, FILE_LIMIT_BYTES, _REMEDY)
    return unpack(content, str(path), FILE_LIMIT_BYTES, _REMEDY)

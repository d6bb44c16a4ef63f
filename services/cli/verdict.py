"""The verdict on a trace file: reads the file and calls the trace checker."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.cli.inputs import read_bounded
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import IDLE_TAGS, VmVerdict, verify
from services.handshake.trace.otlp import parse_otlp_lines

VALID: Final = "valid"
"""The word for a valid handshake in output; an invalid one shows the broken rule instead."""

TRACE_LIMIT_BYTES: Final = 256 << 20
"""Longest trace that is judged, some thousand VMs: it is in memory as a whole."""

_LARGER_TRACE: Final = "give each run of the services a --trace-file of its own"


def judge(file: Path, idle: frozenset[str] = frozenset()) -> list[VmVerdict]:
    """Judge the handshake of every VM in a file of OTLP JSON lines.

    Args:
        file: The file, or a pipe.
        idle: Tags of devices that got no request, in addition to those that may always be idle.

    Raises:
        OSError: The file cannot be read.
        InvalidArgumentError: INPUT_TOO_LARGE, INPUT_TOO_SLOW; TRACE_SYNTAX, also when it is not
            UTF-8; TRACE_WITHOUT_VM.
    """
    try:
        text = read_bounded(file, TRACE_LIMIT_BYTES, _LARGER_TRACE).decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            "TRACE_SYNTAX", f"{file}: not UTF-8 at byte {error.start}, so not lines of OTLP JSON"
        ) from None
    return verify(parse_otlp_lines(text, str(file)), IDLE_TAGS | idle)


def broken_rules(verdicts: list[VmVerdict]) -> list[str]:
    """Return the names of the broken rules, each once, in the order of the verdicts."""
    return list(dict.fromkeys(item.rule for vm in verdicts for item in vm.violations))

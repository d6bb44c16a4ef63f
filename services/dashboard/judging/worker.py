"""The work of a judging process: it reads the spans of a VM from the file and judges them.

Judging is pure Python and takes milliseconds for each VM, so it runs beside the process that
receives and serves. Owns what such a process has. Must not know which VM is judged when.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.dashboard.judging.details import details_of
from services.dashboard.judging.recording import VmRecording, record
from services.dashboard.judging.verdict import judge_lives, judgement_on
from services.dashboard.otlp import Frames, span_document
from services.dashboard.records import SPANS_PER_VM, Judgement, VmRow
from services.dashboard.store import Reader
from services.rpc.tether import tie_to_parent

if TYPE_CHECKING:
    from pathlib import Path

    from services.dashboard.store import StoredVm

_reader: Reader | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A judgement, and what it is of.

    Attributes:
        vm_id: The VM.
        judgement: The judgement.
        seen: For Writer.put_judgement.
        work_s: The processor time that it took.
    """

    vm_id: str
    judgement: Judgement
    seen: int
    work_s: float


def begin(path: Path, parent_pid: int) -> None:
    """Prepare this process; it ends with its parent, and leaves Ctrl-C to it."""
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tie_to_parent(parent_pid)
    os.nice(5)
    _reader = Reader(path, connections=1)


def judge_vm(vm_id: str, *, settled: bool) -> Judged | None:
    """Judge a VM as it is in the file; None: it is not there.

    Args:
        vm_id: The VM.
        settled: Whether no span of it has come for a while.
    """
    began = time.process_time()
    stored = _stored(vm_id)
    if stored is None:
        return None
    vm = _recorded(stored)
    judgement = judgement_on(vm, judge_lives(vm), settled=settled)
    return Judged(vm_id, judgement, stored.seen, time.process_time() - began)


def describe_vm(vm_id: str, *, settled: bool) -> tuple[VmRow, dict[str, Any]] | None:
    """Return the row of a VM and its details; None: it is not there. See `judge_vm`."""
    stored = _stored(vm_id)
    if stored is None:
        return None
    vm = _recorded(stored)
    return stored.row, details_of(vm, judge_lives(vm), settled=settled)


def trace_lines(vm_id: str) -> bytes | None:
    """Return all spans of a VM as lines of OTLP JSON; None: it is not there."""
    stored = _stored(vm_id)
    if stored is None:
        return None
    lines = (
        json.dumps(
            {"resourceSpans": [span_document(span.source_body, span.body)]}, separators=(",", ":")
        )
        + "\n"
        for span in stored.spans
    )
    return "".join(lines).encode()


def _stored(vm_id: str) -> StoredVm | None:
    if _reader is None:
        raise RuntimeError("begin was not called in this process")
    return _reader.vm(vm_id, SPANS_PER_VM)


def _recorded(stored: StoredVm) -> VmRecording:
    frames = Frames()
    documents = (frames.short_document(span.source_body, span.body) for span in stored.spans)
    return record(stored.row.vm_id, documents, more=stored.more)

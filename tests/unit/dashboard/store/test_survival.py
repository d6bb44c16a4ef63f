"""What was acknowledged survives SIGKILL."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from services.dashboard.store import Filters, Limits, Reader, Writer
from tests.support.otlp_requests import vm_id

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from services.dashboard.store import Limits, Writer
from tests.support.handshake_traces import wslc
from tests.support.otlp_requests import spans_of

writer = Writer(Path(sys.argv[1]), Limits(10**9, 1 << 30))
number = 0
while True:
    writer.put_spans(spans_of(wslc(), number)).result()
    print(number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
    acknowledged = 30 + len([line for line in rest[:-1] if line])
    writer = Writer(path, Limits(10**9, 1 << 30))
    reader = Reader(path)
    try:
        rows = reader.list_vms(Filters(limit=500)).rows
        assert {row.vm_id for row in rows} >= {vm_id(number) for number in range(acknowledged)}
        # They are judged after the restart.
        assert len(reader.unjudged()) == len(rows)
    finally:
        reader.close()
        writer.close()

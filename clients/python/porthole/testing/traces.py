"""The spans of one test, and the verdict on its handshakes.

Owns when a handshake has arrived whole. The judge is the command `porthole handshake verify`, a
process of its own: the checker is no part of the client. Must not know how spans arrive.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from porthole.testing.spans import BOOTED, ENDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from porthole.testing.collector import Collector
    from porthole.testing.spans import Batch

WAIT_S: Final = 30.0
"""Longest wait for the ends of VMs, by default."""

SETTLE_S: Final = 6.0
"""How long after the ends of VMs spans of a broken handshake may come, by default. OpenTelemetry
sends them at most 5 s after they end; with `Collector.environment` it is 0.1 s."""

_JUDGE_S: Final = 120.0
_SCHEMA: Final = "verdict.v1"
_VALID, _NEGATIVE = 0, 1


class Traces:
    """The spans that arrive during a test.

    Args:
        collector: Where they arrive.
        command: The command `porthole`.
        file: Where they are written to be judged; it is kept for those who look for the fault.

    Attributes:
        endpoint: Address for OTLP over gRPC, host:port.
        http_endpoint: Base URL for OTLP over HTTP.
        environment: The variables with which services send their spans there.
        file: As given.
    """

    def __init__(self, collector: Collector, command: Sequence[str], file: Path) -> None:
        self.endpoint = collector.endpoint
        self.http_endpoint = collector.http_endpoint
        self.environment = collector.environment
        self.file = file
        self._collector = collector
        self._command = command
        self._of_others = frozenset(_vms(collector.batches(), BOOTED))

    @property
    def vm_ids(self) -> list[str]:
        """The VMs that booted since the test began, as far as their spans have arrived."""
        found = _vms(self._collector.batches(), BOOTED)
        return [vm_id for vm_id in found if vm_id not in self._of_others]

    def assert_valid(
        self,
        *vm_ids: str,
        idle: Iterable[str] = (),
        wait_s: float = WAIT_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Assert that handshakes are valid, when the VMs have ended.

        Args:
            vm_ids: The VMs; none: all that booted since the test began, and at least one.
            idle: Tags of devices that got no request.
            wait_s: Longest wait for the ends of the VMs.
            settle_s: How long after that spans of a broken handshake may come.

        Raises:
            AssertionError: A VM has not ended, or its handshake is not valid; the message has the
                broken rules, and the file with the spans.
            RuntimeError: The command `porthole` was not found or failed.
        """
        __tracebackhide__ = True
        asked = self._ended(vm_ids, time.monotonic() + wait_s)
        deadline_s = time.monotonic() + settle_s
        while True:
            batches = self._collector.batches()
            broken = self._judge(asked, idle, batches)
            if not broken:
                return
            more = partial(_has_more_than, len(batches))
            if not self._collector.wait(more, deadline_s):
                break
        lines = [f"{len(asked)} VM, and its handshake is not valid:", *broken]
        if len(asked) > 1:
            lines[0] = f"{len(asked)} VMs, and not all handshakes are valid:"
        raise AssertionError("\n".join([*lines, f"The spans are in {self.file}."]))

    def _ended(self, vm_ids: Sequence[str], deadline_s: float) -> Sequence[str]:
        """Wait for the ends of VMs; return which VMs they are."""
        __tracebackhide__ = True

        def asked(batches: list[Batch]) -> Sequence[str]:
            if vm_ids:
                return vm_ids
            booted = _vms(batches, BOOTED)
            return [vm_id for vm_id in booted if vm_id not in self._of_others]

        def all_ended(batches: list[Batch]) -> bool:
            due = asked(batches)
            return bool(due) and _vms(batches, ENDED).keys() >= set(due)

        in_time = self._collector.wait(all_ended, deadline_s)
        batches = self._collector.batches()
        if self._collector.is_full:
            raise AssertionError(
                "spans were refused because too many are kept; end VMs that no test needs, or "
                "divide the tests into several runs"
            )
        if in_time:
            return asked(batches)
        missing = [vm_id for vm_id in asked(batches) if vm_id not in _vms(batches, ENDED)]
        if missing:
            raise AssertionError(
                f"no span says that VM {', '.join(missing)} has ended (VmTerminated): does the "
                f"test terminate it, and do the services send spans to {self.endpoint}?"
            )
        raise AssertionError(
            f"no VM has booted, or no service sends spans to {self.endpoint}; start the services "
            "with porthole_traces.environment"
        )

    def _judge(self, vm_ids: Sequence[str], idle: Iterable[str], batches: list[Batch]) -> list[str]:
        """Return a line for each breach of a rule."""
        traces = {
            trace_id for batch in batches for _, vm_id, trace_id in batch.events if vm_id in vm_ids
        }
        with self.file.open("w", encoding="utf-8") as file:
            file.writelines(batch.line for batch in batches if batch.trace_ids & traces)
        flags = [
            *(f"--vm={vm_id}" for vm_id in vm_ids),
            *(f"--idle={tag}" for tag in idle),
            "--no-github",
            "--json",
        ]
        document = self._verdict(flags)
        return [
            f"  {vm['vm_id']}: {broken['rule']}: {broken['detail']}"
            for vm in document["vms"]
            for broken in vm["violations"]
        ] or ([] if document["handshake"] == "valid" else [f"  {document['handshake']}"])

    def _verdict(self, flags: Sequence[str]) -> dict[str, Any]:
        program, *arguments = self._command
        found = shutil.which(program) or shutil.which(Path(sys.executable).with_name(program))
        if found is None:
            raise RuntimeError(
                f"the command {program!r} was not found, which judges handshakes; install "
                "`porthole`, or set porthole_command in pytest's configuration"
            )
        result = subprocess.run(
            [found, *arguments, "handshake", "verify", *flags, str(self.file)],
            capture_output=True,
            encoding="utf-8",
            timeout=_JUDGE_S,
            check=False,
        )
        if result.returncode not in (_VALID, _NEGATIVE):
            raise RuntimeError(f"{found} handshake verify failed: {result.stderr.strip()}")
        try:
            document = json.loads(result.stdout)
        except ValueError:
            document = {}
        if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
            raise RuntimeError(f"{found} printed no {_SCHEMA}: is it of another version?")
        return document


def _has_more_than(count: int, batches: Sequence[Batch]) -> bool:
    return len(batches) > count


def _vms(batches: Iterable[Batch], event: str) -> dict[str, None]:
    """Return the VMs that have an event of a name, in the order of arrival."""
    return {vm_id: None for batch in batches for name, vm_id, _ in batch.events if name == event}

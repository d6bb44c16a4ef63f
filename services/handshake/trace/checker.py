"""The trace checker: judges whether the handshake of every VM in a trace is valid.

Owns the verdict, which names the broken rules. The rules are in services.handshake.trace.table, the
reader of trace files in otlp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.table import CLAUSES
from services.handshake.trace.vm_trace import VmTrace, group_by_vm

if TYPE_CHECKING:
    from services.handshake.trace.recorded import Recording

IDLE_TAGS: Final = frozenset({"loopback0"})
"""Tags of adapters that may stay unused: loopback0 carries only traffic to the host's loopback."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One breach of one rule.

    Attributes:
        rule: Stable name of the rule, one of services.handshake.trace.table.
        detail: One sentence for people.
    """

    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class VmVerdict:
    """The verdict on one VM.

    Attributes:
        vm_id: The VM.
        kind: WSL2 or WSLC; empty when the trace does not say.
        token: The latched token; empty when no pool was latched.
        devices: Number of devices in the trace.
        violations: Breaches of rules; none when the handshake is valid.
    """

    vm_id: str
    kind: str
    token: str
    devices: int
    violations: tuple[Violation, ...]

    @property
    def valid(self) -> bool:
        """Whether no rule is broken."""
        return not self.violations


def verify(recording: Recording, may_be_idle: frozenset[str] = IDLE_TAGS) -> list[VmVerdict]:
    """Judge the handshake of every VM.

    Args:
        recording: Spans and events in any order. Events outside the vocabulary are ignored.
        may_be_idle: Tags of devices that need not have completed a request. The caller must know
            that the guest sent such a device no request.

    Returns:
        One verdict per VM, in the order of their first events; never empty. A VM whose creation
        failed before its guest booted is left out, unless there are no others.

    Raises:
        InvalidArgumentError: TRACE_WITHOUT_VM when there is no VM to judge.
    """
    traces = group_by_vm(recording, may_be_idle)
    if not traces:
        raise InvalidArgumentError(
            "TRACE_WITHOUT_VM",
            "the trace has no event of any VM; was the service started with a trace file?",
        )
    begun = [vm for vm in traces if not vm.never_booted]
    return [judge(vm) for vm in begun or traces]


def judge(vm: VmTrace) -> VmVerdict:
    """Judge the handshake of one VM, for who has grouped a recording by VM."""
    violations = tuple(
        Violation(clause.rule, detail) for clause in CLAUSES for detail in clause.check(vm)
    )
    return VmVerdict(
        vm_id=vm.vm_id,
        kind=vm.kind,
        token=vm.latched.text(events.TOKEN) if vm.latched else "",
        devices=len(vm.devices),
        violations=violations,
    )

"""Whether the handshake of every VM in a trace is valid, and which rule is broken if not.

Owns the verdict. The rules are in services.handshake.trace_rules, reading a file in trace_otlp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace_events import TraceEvent, VmTrace, group_by_vm
from services.handshake.trace_rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["IDLE_TAGS", "RULES", "TraceEvent", "Violation", "VmVerdict", "verify"]

IDLE_TAGS: Final = frozenset({"loopback0"})
"""Adapters that nobody need use: loopback0 carries only what mirrors the host's loopback."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One breach of one rule.

    Attributes:
        rule: Stable name of the rule, one of RULES.
        detail: One sentence for people.
    """

    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class VmVerdict:
    """What the trace says of one VM.

    Attributes:
        vm_id: The VM.
        kind: WSL2 or WSLC; empty when the trace does not tell.
        token: The latched token; empty when no pool was latched.
        devices: How many devices were seen.
        violations: What is wrong; none when the handshake is valid.
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


def verify(
    recorded: Iterable[TraceEvent], may_be_idle: frozenset[str] = IDLE_TAGS
) -> list[VmVerdict]:
    """Judge the handshake of every VM.

    Args:
        recorded: Events in any order, also of other kinds, which are ignored.
        may_be_idle: Tags of devices that need not have completed a request. Whoever adds one
            vouches that nothing was asked of that device.

    Returns:
        One verdict per VM, in the order in which the VMs appear; never empty. VMs whose creation
        failed before their guest booted are left out, unless there are no others.

    Raises:
        InvalidArgumentError: TRACE_WITHOUT_VM: there is no VM to judge, which is no success.
    """
    traces = group_by_vm(recorded, may_be_idle)
    if not traces:
        raise InvalidArgumentError(
            "TRACE_WITHOUT_VM",
            "the trace has no event of any VM; was the service started with a trace file?",
        )
    begun = [vm for vm in traces if not vm.never_booted]
    return [_judge(vm) for vm in begun or traces]


def _judge(vm: VmTrace) -> VmVerdict:
    violations = tuple(
        Violation(name, detail) for name, rule in RULES.items() for detail in rule(vm)
    )
    return VmVerdict(
        vm_id=vm.vm_id,
        kind=vm.kind,
        token=vm.latched.text(events.TOKEN) if vm.latched else "",
        devices=len(vm.devices),
        violations=violations,
    )

"""The metrics of the VM owner: how many VMs there are, by state and kind.

Values are read when metrics are exported. What is counted where it happens is in `verdicts`. Must
not know what a state means.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import Observation

from services.handshake import events
from services.rpc import metrics, tracing
from services.rpc.metrics import Kind, Metric
from services.vm_owner.record import VmKind
from services.vm_owner.states import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from services.vm_owner.vm import Vm

STATE: Final = "porthole.vm.state"

VMS: Final = Metric(
    "porthole.vm.count",
    Kind.UP_DOWN_COUNTER,
    "{vm}",
    "VMs that have not ended, by state and kind",
    (STATE, events.VM_KIND),
)
METRICS: Final = (VMS,)


def observe(vms: Callable[[], Sequence[Vm]]) -> None:
    """Register the instruments; once per process, after `tracing.setup`.

    Args:
        vms: Returns all VMs; it is called on the exporter's thread.
    """
    metrics.observe(tracing.meter(), VMS, lambda: _count(vms()))


def _count(vms: Sequence[Vm]) -> Iterable[Observation]:
    counted = Counter((vm.record.state, vm.record.facts.kind) for vm in vms)
    # Also those of which there are none: a series that ends keeps its last value in a backend.
    return [
        Observation(counted[state, kind], {STATE: str(state), events.VM_KIND: str(kind)})
        for state in VmState
        if state is not VmState.TERMINATED
        for kind in VmKind
    ]

"""The metrics of the VM owner: how many VMs there are, by state and kind.

Values are read when metrics are exported. What is counted where it happens is in `verdicts`. Must
not know what a state means.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import Observation

from services.handshake import events
from services.rpc import tracing
from services.vm_owner.record import VmKind
from services.vm_owner.states import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from services.vm_owner.vm import Vm

VMS: Final = "porthole.vm.count"
"""VMs that have not ended, by state and kind."""

STATE: Final = "porthole.vm.state"


def observe(vms: Callable[[], Sequence[Vm]]) -> None:
    """Register the instruments; once per process, after `tracing.setup`.

    Args:
        vms: Returns all VMs; it is called on the exporter's thread.
    """
    tracing.meter().create_observable_up_down_counter(
        VMS,
        callbacks=[lambda _: _count(vms())],
        unit="{vm}",
        description="VMs that have not ended, by state and kind",
    )


def _count(vms: Sequence[Vm]) -> Iterable[Observation]:
    counted = Counter((vm.record.state, vm.record.facts.kind) for vm in vms)
    # Also those of which there are none: a series that ends keeps its last value in a backend.
    return [
        Observation(counted[state, kind], {STATE: str(state), events.VM_KIND: str(kind)})
        for state in VmState
        if state is not VmState.TERMINATED
        for kind in VmKind
    ]

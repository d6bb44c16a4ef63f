"""The table of operations.py, compared with handshake.md section 10."""

from __future__ import annotations

from itertools import product

import pytest

from services.handshake.errors import FailedPreconditionError
from services.vm_owner.operations import Operation, require
from services.vm_owner.states import VmState

ADDS = (
    *(Operation.ADD_SHARE, Operation.ADD_DEVICE, Operation.CONFIGURE_NETWORKING),
    Operation.MAP_PORT,
)
REMOVES = (
    *(Operation.REMOVE_SHARE, Operation.REMOVE_DEVICE),
    *(Operation.UNMAP_PORT, Operation.LIST_PORTS, Operation.SET_RATE_LIMIT),
)
CAPABILITIES = (Operation.READ_CAPABILITIES, Operation.APPLY_CAPABILITIES)
EXPECTED: dict[tuple[Operation, VmState], str] = {
    **{(op, VmState.CREATED): "CAPABILITIES_NOT_READ" for op in ADDS},
    **{(op, VmState.BOOTED): "CAPABILITIES_NOT_READ" for op in ADDS},
    **{(op, VmState.CREATED): "VM_NOT_BOOTED" for op in CAPABILITIES},
    **{(op, VmState.SHUTTING_DOWN): "VM_SHUTTING_DOWN" for op in (*ADDS, *REMOVES, *CAPABILITIES)},
    **{(op, VmState.TERMINATED): "VM_TERMINATED" for op in (*ADDS, *REMOVES, *CAPABILITIES)},
}


@pytest.mark.parametrize(("operation", "state"), [*product(Operation, VmState)])
def test_every_operation_in_every_state(operation: Operation, state: VmState) -> None:
    reason = EXPECTED.get((operation, state))
    if reason is None:
        require(operation, "vm", state)
        return
    with pytest.raises(FailedPreconditionError) as refused:
        require(operation, "vm", state)
    assert refused.value.reason == reason
    assert operation.value in refused.value.message
    assert state.value in refused.value.message


def test_a_refused_operation_has_its_vm_and_state() -> None:
    with pytest.raises(FailedPreconditionError, match="VM vm is CREATED") as refused:
        require(Operation.ADD_SHARE, "vm", VmState.CREATED)
    assert refused.value.metadata == {"vm_id": "vm", "state": "CREATED"}

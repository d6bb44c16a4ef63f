"""The tables of states.py, compared with handshake.md section 10."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import FailedPreconditionError
from services.handshake.states import (
    ADD_ORDER,
    REMOVE_ORDER,
    SHUTDOWN_ORDER,
    UNDO,
    DeviceLife,
    DeviceStep,
    Operation,
    VmEvent,
    VmState,
    guest_device_life,
    require,
    vm_life,
)

if TYPE_CHECKING:
    from services.handshake.state_machine import StateMachine

LEGAL_VM = {
    ("CREATED", "boot"): "BOOTED",
    ("BOOTED", "read capabilities"): "RUNNING",
    ("RUNNING", "read capabilities"): "RUNNING",
    ("CREATED", "shut down"): "SHUTTING_DOWN",
    ("BOOTED", "shut down"): "SHUTTING_DOWN",
    ("RUNNING", "shut down"): "SHUTTING_DOWN",
    ("SHUTTING_DOWN", "terminate"): "TERMINATED",
}


@pytest.mark.parametrize(("state", "event"), [*product(VmState, VmEvent)])
def test_vm_goes_where_the_table_says_and_nowhere_else(state: VmState, event: VmEvent) -> None:
    machine = vm_life("vm")
    machine.state = state
    target = LEGAL_VM.get((state.value, event.value))
    if target is not None:
        assert machine.fire(event) == target
        assert machine.state == target
        return
    with pytest.raises(FailedPreconditionError, match=f"VM vm is {state}") as refused:
        machine.fire(event)
    assert refused.value.reason == "ILLEGAL_EVENT"
    assert machine.state is state


def states_after(
    steps: tuple[DeviceStep, ...], machine: StateMachine[DeviceLife, DeviceStep]
) -> list[str]:
    return [machine.fire(step).value for step in steps]


def test_a_device_lives_in_the_documented_order() -> None:
    machine = guest_device_life("device")
    assert machine.state is DeviceLife.ABSENT
    assert states_after(ADD_ORDER, machine) == [
        "IDENTIFIED",
        "REGISTERED",
        "CREATED",
        "STORED",
        "ATTACHED",
    ]
    assert states_after(REMOVE_ORDER, machine) == [
        "SHUTTING_DOWN",
        "TORN_DOWN",
        "FORGOTTEN",
        "DETACHED",
    ]
    for step in DeviceStep:
        with pytest.raises(FailedPreconditionError, match="this state is final"):
            machine.fire(step)


def test_no_step_can_be_skipped_or_repeated() -> None:
    whole = (*ADD_ORDER, *REMOVE_ORDER)
    for done, wrong in product(range(len(whole)), DeviceStep):
        machine = guest_device_life("device")
        states_after(whole[:done], machine)
        before = machine.state
        early_end = wrong is DeviceStep.MARK_SHUTTING_DOWN and before in (
            DeviceLife.REGISTERED,
            DeviceLife.CREATED,
            DeviceLife.STORED,
        )
        if wrong is whole[done] or early_end:
            continue
        with pytest.raises(FailedPreconditionError):
            machine.fire(wrong)
        assert machine.state is before


@pytest.mark.parametrize("done", range(len(ADD_ORDER) + 1))
def test_an_undone_addition_tears_down_before_it_forgets(done: int) -> None:
    machine = guest_device_life("device")
    states_after(ADD_ORDER[:done], machine)
    undone = UNDO[machine.state]
    registered = done >= 2
    assert (DeviceStep.TEAR_DOWN in undone) == registered
    assert (DeviceStep.DETACH in undone) == (done >= 4)
    states_after(undone, machine)
    if registered:
        assert machine.state in (DeviceLife.FORGOTTEN, DeviceLife.DETACHED)


def test_a_vm_that_ends_does_not_detach() -> None:
    assert REMOVE_ORDER[:-1] == SHUTDOWN_ORDER


ADDS = (Operation.ADD_SHARE, Operation.ADD_DEVICE, Operation.CONFIGURE_NETWORKING)
REMOVES = (Operation.REMOVE_SHARE, Operation.REMOVE_DEVICE)
EXPECTED: dict[tuple[Operation, VmState], str] = {
    **{(op, VmState.CREATED): "CAPABILITIES_NOT_READ" for op in ADDS},
    **{(op, VmState.BOOTED): "CAPABILITIES_NOT_READ" for op in ADDS},
    (Operation.APPLY_CAPABILITIES, VmState.CREATED): "VM_NOT_BOOTED",
    **{
        (op, VmState.SHUTTING_DOWN): "VM_SHUTTING_DOWN"
        for op in (*ADDS, *REMOVES, Operation.APPLY_CAPABILITIES)
    },
    **{
        (op, VmState.TERMINATED): "VM_TERMINATED"
        for op in (*ADDS, *REMOVES, Operation.APPLY_CAPABILITIES)
    },
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


def test_a_new_vm_is_created() -> None:
    assert vm_life("vm").state is VmState.CREATED


def test_an_illegal_event_is_answered_with_the_legal_ones() -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        vm_life("vm").fire(VmEvent.TERMINATE)
    assert refused.value.message == (
        "VM vm is CREATED: it cannot terminate now, only boot, shut down"
    )
    assert refused.value.metadata == {"state": "CREATED", "event": "terminate"}
    with pytest.raises(FailedPreconditionError, match=r"^device d is ABSENT"):
        guest_device_life("device d").fire(DeviceStep.DETACH)


def test_a_refused_operation_has_its_vm_and_state() -> None:
    with pytest.raises(FailedPreconditionError, match="VM vm is CREATED") as refused:
        require(Operation.ADD_SHARE, "vm", VmState.CREATED)
    assert refused.value.metadata == {"vm_id": "vm", "state": "CREATED"}

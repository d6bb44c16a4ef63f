"""The tables of states.py, compared with handshake.md section 10."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import FailedPreconditionError
from services.vm_owner.states import (
    ADD_ORDER,
    REMOVE_ORDER,
    SHUTDOWN_ORDER,
    UNDO,
    DeviceStep,
    GuestDeviceState,
    VmEvent,
    VmState,
    guest_device_life,
    vm_life,
)

if TYPE_CHECKING:
    from services.handshake.state_machine import StateMachine

LEGAL_VM = {
    ("CREATED", "boot"): "BOOTED",
    ("BOOTED", "apply capabilities"): "RUNNING",
    ("BOOTED", "miss capabilities"): "RUNNING",
    ("RUNNING", "apply capabilities"): "RUNNING",
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
    steps: tuple[DeviceStep, ...], machine: StateMachine[GuestDeviceState, DeviceStep]
) -> list[str]:
    return [machine.fire(step).value for step in steps]


def test_a_device_lives_in_the_documented_order() -> None:
    machine = guest_device_life("device")
    assert machine.state is GuestDeviceState.ABSENT
    assert states_after(ADD_ORDER, machine) == [
        "IDENTIFIED",
        "RESERVED",
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
            GuestDeviceState.REGISTERED,
            GuestDeviceState.CREATED,
            GuestDeviceState.STORED,
        )
        unused = wrong is DeviceStep.GIVE_BACK and before in (
            GuestDeviceState.RESERVED,
            GuestDeviceState.FORGOTTEN,
        )
        if wrong is whole[done] or early_end or unused:
            continue
        with pytest.raises(FailedPreconditionError):
            machine.fire(wrong)
        assert machine.state is before


@pytest.mark.parametrize("done", range(len(ADD_ORDER) + 1))
def test_an_undone_addition_tears_down_before_it_forgets(done: int) -> None:
    machine = guest_device_life("device")
    states_after(ADD_ORDER[:done], machine)
    undone = UNDO[machine.state]
    reserved, registered, stored = done >= 2, done >= 3, done >= 5
    assert (DeviceStep.TEAR_DOWN in undone) == registered
    assert (DeviceStep.DETACH in undone) == stored
    assert (DeviceStep.GIVE_BACK in undone) == (reserved and not stored)
    states_after(undone, machine)
    assert (machine.state is GuestDeviceState.DETACHED) == reserved


def test_a_vm_that_ends_does_not_detach() -> None:
    assert REMOVE_ORDER[:-1] == SHUTDOWN_ORDER


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

"""The table of the guest's life: what each state allows, and that all else changes nothing."""

from __future__ import annotations

from itertools import product

import pytest

from services.handshake.errors import FailedPreconditionError
from services.simguest.states import GuestEvent, GuestState, guest_life

LEGAL = {
    ("not booted", "boot"): "booting",
    ("not booted", "power off"): "powered off",
    ("booting", "finish booting"): "running",
    ("booting", "give up booting"): "not booted",
    ("running", "attach a device"): "running",
    ("running", "detach a device"): "running",
    ("running", "power off"): "powered off",
    ("powered off", "power off"): "powered off",
}


@pytest.mark.parametrize(("state", "event"), [*product(GuestState, GuestEvent)])
def test_a_guest_goes_where_the_table_says_and_nowhere_else(
    state: GuestState, event: GuestEvent
) -> None:
    life = guest_life()
    life.state = state
    target = LEGAL.get((state.value, event.value))
    if target is not None:
        assert life.fire(event) == target
        return
    with pytest.raises(FailedPreconditionError):
        life.fire(event)
    assert life.state is state

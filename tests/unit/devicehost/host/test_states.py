from __future__ import annotations

import itertools

import pytest

from services.devicehost.host.states import (
    TRANSITIONS,
    DeviceEvent,
    DeviceState,
    hosted_device_life,
)
from services.handshake.errors import FailedPreconditionError


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(DeviceState, DeviceEvent)), ids=str
)
def test_every_pair_of_state_and_event_leads_where_the_table_says_or_is_refused(
    state: DeviceState, event: DeviceEvent
) -> None:
    machine = hosted_device_life("device d1")
    machine.state = state
    target = TRANSITIONS.get((state, event))
    if target is not None:
        assert machine.fire(event) is target
    else:
        with pytest.raises(FailedPreconditionError, match="device d1"):
            machine.fire(event)
        assert machine.state is state


def test_a_whole_life() -> None:
    machine = hosted_device_life("device d1")
    events = ("CONNECT", "ATTACH", "FAIL", "RESET", "DISCONNECT", "CONNECT", "REMOVE", "DISCONNECT")
    assert [machine.fire(DeviceEvent[event]).name for event in events] == [
        "CONNECTED",
        "ATTACHED",
        "NEEDS_RESET",
        "ATTACHED",
        "LISTENING",
        "CONNECTED",
        "SHUTTING_DOWN",
        "SHUTTING_DOWN",
    ]


def test_nothing_leads_out_of_shutting_down() -> None:
    assert {
        target for (state, _), target in TRANSITIONS.items() if state is DeviceState.SHUTTING_DOWN
    } == {DeviceState.SHUTTING_DOWN}

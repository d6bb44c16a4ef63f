"""The table of ring_states.py, held against the words of vhost-user.rst, section "Ring states".

The expected target of every event in every state is worked out here from two facts, as the
specification has them, and from what this back-end adds: that a worker is at work.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest

from services.devicehost.vhost_user.ring_states import (
    RING_TRANSITIONS,
    RingEvent,
    RingState,
    ring_life,
)
from services.handshake.errors import FailedPreconditionError


class Facts(NamedTuple):
    """ "Rings have two independent states: started/stopped, and enabled/disabled." """

    started: bool
    enabled: bool
    served: bool = False


FACTS = {
    "stopped and disabled": Facts(started=False, enabled=False),
    "stopped and enabled": Facts(started=False, enabled=True),
    "started and disabled": Facts(started=True, enabled=False),
    "started and enabled": Facts(started=True, enabled=True),
    "served": Facts(started=True, enabled=True, served=True),
}


def expected(before: Facts, event: RingEvent) -> Facts | None:
    """Follow one event by the words of the specification; None where it must not happen."""
    match event:
        case RingEvent.START:
            # "The back-end must start a ring upon receiving a kick [...] on the descriptor
            # specified by VHOST_USER_SET_VRING_KICK"; enabled or not stays as it is. The present
            # worker has the old descriptor.
            return before._replace(started=True, served=False)
        case RingEvent.STOP:
            # "and stop a ring upon receiving VHOST_USER_GET_VRING_BASE." "While a ring is stopped,
            # the back-end must not process the ring at all, regardless of whether it is enabled or
            # disabled. The enabled/disabled state should still be tracked, though".
            return before._replace(started=False, served=False)
        case RingEvent.ENABLE:
            # "Rings can be enabled or disabled by VHOST_USER_SET_VRING_ENABLE."
            return before._replace(enabled=True)
        case RingEvent.DISABLE:
            # "started and disabled: The back-end must process the ring without causing any side
            # effects." A worker would cause some.
            return before._replace(enabled=False, served=False)
        case RingEvent.SERVE:
            # "started and enabled: The back-end must process the ring normally"; by one worker.
            may_begin = before.started and before.enabled and not before.served
            return before._replace(served=True) if may_begin else None
        case RingEvent.PAUSE:
            # Of this back-end: what the front-end decided stays.
            return before._replace(served=False) if before.served else None
        case RingEvent.CONFIGURE:
            # Of this back-end: size, base and addresses are not changed under a worker.
            return None if before.served else before


@pytest.mark.parametrize(("state", "event"), [*product(RingState, RingEvent)])
def test_every_event_in_every_state_does_what_the_specification_says(
    state: RingState, event: RingEvent
) -> None:
    life = ring_life(3)
    life.state = state
    target = expected(FACTS[state.value], event)
    if target is not None:
        assert FACTS[life.fire(event).value] == target
        assert FACTS[life.state.value] == target
        return
    with pytest.raises(FailedPreconditionError, match=f"ring 3 is {state}: it cannot") as refused:
        life.fire(event)
    assert refused.value.reason == "ILLEGAL_EVENT"
    assert life.state is state


def test_the_states_are_the_four_of_the_specification_and_one_of_ours() -> None:
    assert {state.value for state in RingState} == set(FACTS)
    assert len(set(FACTS.values())) == len(FACTS)


def test_a_ring_begins_stopped_and_disabled() -> None:
    """ "Each ring is initialized in a stopped and disabled state." """
    assert FACTS[ring_life(0).state.value] == Facts(started=False, enabled=False)


def test_a_front_ends_messages_are_illegal_only_where_a_worker_relies_on_what_they_change() -> None:
    """No front-end can break the table by the order of its messages."""
    ours = {RingEvent.SERVE, RingEvent.PAUSE}
    illegal = {
        (state, event)
        for state, event in product(RingState, RingEvent)
        if event not in ours and (state, event) not in RING_TRANSITIONS
    }
    assert illegal == {(RingState.SERVED, RingEvent.CONFIGURE)}

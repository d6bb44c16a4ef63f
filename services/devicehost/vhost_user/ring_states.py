"""The states of one ring, as data (QEMU docs/interop/vhost-user.rst, "Ring states").

The specification has two independent states: stopped or started, and enabled or disabled. This
back-end adds one: a ring that is started and enabled is SERVED while a worker is at work on it.
Two facts are no states of a ring: whether it can be reached (that changes with guest memory, see
`Ring.placed`), and whether the device has failed (that concerns all of its rings, see `Backend`).

Owns which event leads where. Must not know descriptors, memory or threads.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.state_machine import StateMachine

if TYPE_CHECKING:
    from collections.abc import Mapping


class RingState(StrEnum):
    """Where a ring is in its life."""

    STOPPED_DISABLED = "stopped and disabled"
    STOPPED_ENABLED = "stopped and enabled"
    STARTED_DISABLED = "started and disabled"
    """The specification lets a back-end process such a ring without side effects. This one leaves
    it alone: neither device type has work without side effects for it."""
    STARTED_ENABLED = "started and enabled"
    """The ring waits for a worker: it cannot be reached, its worker was paused or could not be
    started, or the device has failed."""
    SERVED = "served"
    """Started and enabled, and a worker processes it."""


class RingEvent(StrEnum):
    """The events that move a ring from state to state."""

    CONFIGURE = "be configured"
    """SET_VRING_NUM, SET_VRING_BASE or SET_VRING_ADDR changes what a worker relies on."""
    START = "be started"
    """SET_VRING_KICK. The specification starts a ring at the first kick; here a worker may begin
    before it, and finds nothing available."""
    STOP = "be stopped"
    """GET_VRING_BASE."""
    ENABLE = "be enabled"
    """SET_VRING_ENABLE with 1, or features without F_PROTOCOL_FEATURES."""
    DISABLE = "be disabled"
    """SET_VRING_ENABLE with 0."""
    SERVE = "be served"
    """A worker begins."""
    PAUSE = "be paused"
    """The worker ends because guest memory is about to change."""


RING_TRANSITIONS: Final[Mapping[tuple[RingState, RingEvent], RingState]] = {
    (RingState.STOPPED_DISABLED, RingEvent.CONFIGURE): RingState.STOPPED_DISABLED,
    (RingState.STOPPED_DISABLED, RingEvent.START): RingState.STARTED_DISABLED,
    (RingState.STOPPED_DISABLED, RingEvent.STOP): RingState.STOPPED_DISABLED,
    (RingState.STOPPED_DISABLED, RingEvent.ENABLE): RingState.STOPPED_ENABLED,
    (RingState.STOPPED_DISABLED, RingEvent.DISABLE): RingState.STOPPED_DISABLED,
    (RingState.STOPPED_ENABLED, RingEvent.CONFIGURE): RingState.STOPPED_ENABLED,
    (RingState.STOPPED_ENABLED, RingEvent.START): RingState.STARTED_ENABLED,
    (RingState.STOPPED_ENABLED, RingEvent.STOP): RingState.STOPPED_ENABLED,
    (RingState.STOPPED_ENABLED, RingEvent.ENABLE): RingState.STOPPED_ENABLED,
    (RingState.STOPPED_ENABLED, RingEvent.DISABLE): RingState.STOPPED_DISABLED,
    (RingState.STARTED_DISABLED, RingEvent.CONFIGURE): RingState.STARTED_DISABLED,
    (RingState.STARTED_DISABLED, RingEvent.START): RingState.STARTED_DISABLED,
    (RingState.STARTED_DISABLED, RingEvent.STOP): RingState.STOPPED_DISABLED,
    (RingState.STARTED_DISABLED, RingEvent.ENABLE): RingState.STARTED_ENABLED,
    (RingState.STARTED_DISABLED, RingEvent.DISABLE): RingState.STARTED_DISABLED,
    (RingState.STARTED_ENABLED, RingEvent.CONFIGURE): RingState.STARTED_ENABLED,
    (RingState.STARTED_ENABLED, RingEvent.START): RingState.STARTED_ENABLED,
    (RingState.STARTED_ENABLED, RingEvent.STOP): RingState.STOPPED_ENABLED,
    (RingState.STARTED_ENABLED, RingEvent.ENABLE): RingState.STARTED_ENABLED,
    (RingState.STARTED_ENABLED, RingEvent.DISABLE): RingState.STARTED_DISABLED,
    (RingState.STARTED_ENABLED, RingEvent.SERVE): RingState.SERVED,
    # Another kick descriptor: the worker ends, and the next one takes the new descriptor.
    (RingState.SERVED, RingEvent.START): RingState.STARTED_ENABLED,
    (RingState.SERVED, RingEvent.STOP): RingState.STOPPED_ENABLED,
    (RingState.SERVED, RingEvent.ENABLE): RingState.SERVED,
    (RingState.SERVED, RingEvent.DISABLE): RingState.STARTED_DISABLED,
    (RingState.SERVED, RingEvent.PAUSE): RingState.STARTED_ENABLED,
}
"""Every other event is illegal: nothing that a worker relies on is configured while it works, and
only a ring that is started and enabled is served."""


def ring_life(index: int) -> StateMachine[RingState, RingEvent]:
    """Return the state machine of a ring that the front-end has not mentioned yet."""
    return StateMachine(f"ring {index}", RingState.STOPPED_DISABLED, RING_TRANSITIONS)

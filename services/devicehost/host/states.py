"""The life of a device in the device host, as a table (DeviceState in device.proto).

Must not know what a device does in each state.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.state_machine import StateMachine

if TYPE_CHECKING:
    from collections.abc import Mapping


class DeviceState(StrEnum):
    """Where a device is in its life."""

    LISTENING = "listening"
    """No front-end has connected."""
    CONNECTED = "connected"
    """A front-end is connected; guest memory is not attached yet."""
    ATTACHED = "attached"
    """Guest memory is attached and queues may run."""
    NEEDS_RESET = "needs_reset"
    """The guest broke a rule; the device serves nothing until it is reset."""
    SHUTTING_DOWN = "shutting_down"
    """The device is being torn down and takes nothing new."""


class DeviceEvent(StrEnum):
    """The events that move a device from state to state."""

    CONNECT = "connect"
    ATTACH = "attach"
    FAIL = "fail"
    RESET = "reset"
    DISCONNECT = "disconnect"
    REMOVE = "remove"


TRANSITIONS: Final[Mapping[tuple[DeviceState, DeviceEvent], DeviceState]] = {
    (DeviceState.LISTENING, DeviceEvent.CONNECT): DeviceState.CONNECTED,
    (DeviceState.CONNECTED, DeviceEvent.ATTACH): DeviceState.ATTACHED,
    (DeviceState.CONNECTED, DeviceEvent.DISCONNECT): DeviceState.LISTENING,
    # A front-end may change its memory table while the device is attached.
    (DeviceState.ATTACHED, DeviceEvent.ATTACH): DeviceState.ATTACHED,
    (DeviceState.ATTACHED, DeviceEvent.FAIL): DeviceState.NEEDS_RESET,
    (DeviceState.ATTACHED, DeviceEvent.DISCONNECT): DeviceState.LISTENING,
    (DeviceState.NEEDS_RESET, DeviceEvent.ATTACH): DeviceState.NEEDS_RESET,
    (DeviceState.NEEDS_RESET, DeviceEvent.RESET): DeviceState.ATTACHED,
    (DeviceState.NEEDS_RESET, DeviceEvent.DISCONNECT): DeviceState.LISTENING,
    (DeviceState.LISTENING, DeviceEvent.REMOVE): DeviceState.SHUTTING_DOWN,
    (DeviceState.CONNECTED, DeviceEvent.REMOVE): DeviceState.SHUTTING_DOWN,
    (DeviceState.ATTACHED, DeviceEvent.REMOVE): DeviceState.SHUTTING_DOWN,
    (DeviceState.NEEDS_RESET, DeviceEvent.REMOVE): DeviceState.SHUTTING_DOWN,
    # Several calls may remove it, and its threads report while they end: that changes nothing.
    (DeviceState.SHUTTING_DOWN, DeviceEvent.REMOVE): DeviceState.SHUTTING_DOWN,
    (DeviceState.SHUTTING_DOWN, DeviceEvent.CONNECT): DeviceState.SHUTTING_DOWN,
    (DeviceState.SHUTTING_DOWN, DeviceEvent.ATTACH): DeviceState.SHUTTING_DOWN,
    (DeviceState.SHUTTING_DOWN, DeviceEvent.FAIL): DeviceState.SHUTTING_DOWN,
    (DeviceState.SHUTTING_DOWN, DeviceEvent.RESET): DeviceState.SHUTTING_DOWN,
    (DeviceState.SHUTTING_DOWN, DeviceEvent.DISCONNECT): DeviceState.SHUTTING_DOWN,
}


def hosted_device_life(subject: str) -> StateMachine[DeviceState, DeviceEvent]:
    """Return the state machine of a new device."""
    return StateMachine(subject, DeviceState.LISTENING, TRANSITIONS)

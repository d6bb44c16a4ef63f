"""The life of the user-space guest, as a table.

Owns the states of a guest and the events that each state allows. Must not know how a step is done:
guest.py does the steps, and fires the events.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.state_machine import StateMachine

if TYPE_CHECKING:
    from collections.abc import Mapping


class GuestState(StrEnum):
    """The state of a guest."""

    OFF = "not booted"
    BOOTING = "booting"
    RUNNING = "running"
    POWERED_OFF = "powered off"


class GuestEvent(StrEnum):
    """An event that changes the state of a guest."""

    BOOT = "boot"
    BOOT_DONE = "finish booting"
    BOOT_FAILED = "give up booting"
    ATTACH = "attach a device"
    DETACH = "detach a device"
    POWER_OFF = "power off"


TRANSITIONS: Final[Mapping[tuple[GuestState, GuestEvent], GuestState]] = {
    (GuestState.OFF, GuestEvent.BOOT): GuestState.BOOTING,
    (GuestState.OFF, GuestEvent.POWER_OFF): GuestState.POWERED_OFF,
    (GuestState.BOOTING, GuestEvent.BOOT_DONE): GuestState.RUNNING,
    # A failed boot leaves nothing behind, so the owner may try again.
    (GuestState.BOOTING, GuestEvent.BOOT_FAILED): GuestState.OFF,
    (GuestState.RUNNING, GuestEvent.ATTACH): GuestState.RUNNING,
    (GuestState.RUNNING, GuestEvent.DETACH): GuestState.RUNNING,
    (GuestState.RUNNING, GuestEvent.POWER_OFF): GuestState.POWERED_OFF,
    (GuestState.POWERED_OFF, GuestEvent.POWER_OFF): GuestState.POWERED_OFF,
}


def guest_life() -> StateMachine[GuestState, GuestEvent]:
    """Return the state machine of a guest that has not booted."""
    return StateMachine("the guest", GuestState.OFF, TRANSITIONS)

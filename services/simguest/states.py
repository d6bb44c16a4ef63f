"""The life of the user-space guest, as a table.

Owns what may happen to a guest in which state. Must not know how a step is done: guest.py does the
steps, and fires the events.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.state_machine import StateMachine

if TYPE_CHECKING:
    from collections.abc import Mapping


class GuestState(StrEnum):
    """Where a guest is in its life."""

    OFF = "not booted"
    BOOTING = "booting"
    RUNNING = "running"
    POWERED_OFF = "powered off"


class GuestEvent(StrEnum):
    """What moves a guest from state to state."""

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
    # Nothing of a boot that failed is left, so the owner may try again.
    (GuestState.BOOTING, GuestEvent.BOOT_FAILED): GuestState.OFF,
    (GuestState.RUNNING, GuestEvent.ATTACH): GuestState.RUNNING,
    (GuestState.RUNNING, GuestEvent.DETACH): GuestState.RUNNING,
    (GuestState.RUNNING, GuestEvent.POWER_OFF): GuestState.POWERED_OFF,
    (GuestState.POWERED_OFF, GuestEvent.POWER_OFF): GuestState.POWERED_OFF,
}


def guest_life() -> StateMachine[GuestState, GuestEvent]:
    """Return the state machine of a guest that has not booted."""
    return StateMachine("the guest", GuestState.OFF, TRANSITIONS)

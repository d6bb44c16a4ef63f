"""A state machine of a made-up thing: what its table allows, and how the rest is refused."""

from __future__ import annotations

from enum import StrEnum

import pytest

from services.handshake.errors import FailedPreconditionError
from services.handshake.state_machine import StateMachine


class Light(StrEnum):
    RED = "red"
    GREEN = "green"
    BROKEN = "broken"


class Press(StrEnum):
    GO = "go"
    HALT = "halt"
    HIT = "hit"


TABLE = {
    (Light.RED, Press.GO): Light.GREEN,
    (Light.RED, Press.HIT): Light.BROKEN,
    (Light.GREEN, Press.HALT): Light.RED,
}


def light() -> StateMachine[Light, Press]:
    return StateMachine("light 7", Light.RED, TABLE)


def test_an_event_of_the_table_leads_on() -> None:
    machine = light()
    before = machine.state
    assert before is Light.RED
    assert machine.fire(Press.GO) is Light.GREEN
    assert machine.state is Light.GREEN
    assert machine.fire(Press.HALT) is Light.RED


def test_another_event_is_refused_and_changes_nothing() -> None:
    machine = light()
    with pytest.raises(FailedPreconditionError) as refused:
        machine.fire(Press.HALT)
    assert refused.value.reason == "ILLEGAL_EVENT"
    assert refused.value.message == "light 7 is red: it cannot halt now, only go, hit"
    assert refused.value.metadata == {"state": "red", "event": "halt"}
    assert machine.state is Light.RED


def test_a_final_state_is_called_so() -> None:
    machine = light()
    machine.fire(Press.HIT)
    with pytest.raises(FailedPreconditionError) as refused:
        machine.fire(Press.GO)
    assert refused.value.message == "light 7 is broken: it cannot go now, this state is final"

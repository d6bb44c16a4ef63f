"""A state machine whose table is data: an illegal event raises and changes nothing.

Owns the firing of events. Each table is in the module of its states.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Mapping

State = TypeVar("State", bound=StrEnum)
Trigger = TypeVar("Trigger", bound=StrEnum)


class StateMachine(Generic[State, Trigger]):
    """A state, and the table of the events that lead out of it.

    Args:
        subject: Name of the thing in error messages, for instance "VM 7".
        initial: The first state.
        transitions: The next state by state and event; an absent pair is illegal.
    """

    def __init__(
        self,
        subject: str,
        initial: State,
        transitions: Mapping[tuple[State, Trigger], State],
    ) -> None:
        self._subject = subject
        self._transitions = transitions
        self.state = initial

    def fire(self, event: Trigger) -> State:
        """Change the state as the table says, and return the new state.

        Raises:
            FailedPreconditionError: ILLEGAL_EVENT; the state has not changed.
        """
        target = self._transitions.get((self.state, event))
        if target is None:
            legal = ", ".join(sorted(e for s, e in self._transitions if s == self.state))
            raise FailedPreconditionError(
                "ILLEGAL_EVENT",
                f"{self._subject} is {self.state}: it cannot {event} now, "
                + (f"only {legal}" if legal else "this state is final"),
                state=self.state,
                event=event,
            )
        self.state = target
        return target

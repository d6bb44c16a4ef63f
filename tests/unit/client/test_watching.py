"""WatchVm across broken streams."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import pytest
from porthole.client import NotFoundError, UnavailableError
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.handshake import errors as theirs
from tests.unit.client.scripted_owner import SlowAnswer

if TYPE_CHECKING:
    from tests.unit.client.conftest import Client
    from tests.unit.client.scripted_owner import ScriptedOwner

LOST = grpc.StatusCode.UNAVAILABLE
TOO_SLOW = theirs.ResourceExhaustedError("WATCHER_TOO_SLOW", "read faster")


def event(sequence: int, state: pb.VmState.ValueType = pb.VM_STATE_RUNNING) -> pb.WatchVmResponse:
    return pb.WatchVmResponse(sequence=sequence, state=state)


def end(sequence: int, *, resumed: bool = False) -> pb.WatchVmResponse:
    return pb.WatchVmResponse(sequence=sequence, snapshot_end=pb.SnapshotEnd(resumed=resumed))


def places(owner: ScriptedOwner) -> list[int]:
    return [request.after_sequence for request in owner.requests(pb.WatchVmRequest)]


def test_a_stream_that_ends_in_order_is_the_end(client: Client, owner: ScriptedOwner) -> None:
    messages = [event(3), end(3), event(4, pb.VM_STATE_TERMINATED)]
    owner.script.append(messages)
    assert client.take(99, "watch_vm", "vm") == messages
    assert places(owner) == [0]


@pytest.mark.parametrize("broken", [LOST, TOO_SLOW])
def test_a_broken_stream_goes_on_after_the_last_message(
    client: Client, owner: ScriptedOwner, broken: object
) -> None:
    owner.script.extend(
        [[event(3), end(3), event(4), broken], [LOST], [end(4, resumed=True), event(5)]]
    )
    assert client.take(99, "watch_vm", "vm") == [event(3), end(3), event(4), event(5)]
    assert places(owner) == [0, 4, 4]


def test_after_a_gap_the_reader_gets_a_snapshot_and_its_end(
    client: Client, owner: ScriptedOwner
) -> None:
    owner.script.extend([[event(3), end(3), LOST], [event(900), end(900), event(901)]])
    assert client.take(99, "watch_vm", "vm") == [
        *(event(3), end(3)),
        *(event(900), end(900), event(901)),
    ]
    assert places(owner) == [0, 3]


def test_a_snapshot_that_breaks_off_is_asked_for_again(
    client: Client, owner: ScriptedOwner
) -> None:
    """All of its messages have the last number, after which the rest would be missing."""
    owner.script.extend([[event(3), LOST], [event(3), event(3), end(3)]])
    assert client.take(99, "watch_vm", "vm") == [event(3), event(3), event(3), end(3)]
    assert places(owner) == [0, 0]


def test_a_reader_that_comes_back_learns_whether_it_goes_on(
    client: Client, owner: ScriptedOwner
) -> None:
    owner.script.append([end(7, resumed=True), event(8)])
    taken = client.take(99, "watch_vm", "vm", after_sequence=7)
    assert taken == [end(7, resumed=True), event(8)]
    assert places(owner) == [7]


def test_a_vm_that_is_gone_after_the_break_is_an_error(
    client: Client, owner: ScriptedOwner
) -> None:
    gone = theirs.NotFoundError("VM_NOT_FOUND", "no such VM")
    owner.script.extend([[end(0), LOST], [gone]])
    with pytest.raises(NotFoundError):
        client.take(99, "watch_vm", "vm")


def test_an_owner_that_stays_away_is_an_error(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend([[end(0), LOST], *[[LOST]] * 50])
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        client.take(99, "watch_vm", "vm", wait_s=0.5)
    assert time.monotonic() - began < 5


def test_the_wait_begins_when_the_stream_breaks(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend(
        [[end(0), SlowAnswer(0.8, event(1)), LOST], [LOST], [end(1, resumed=True), event(2)]]
    )
    assert client.take(99, "watch_vm", "vm", wait_s=0.4) == [end(0), event(1), event(2)]


def test_a_reader_that_stops_ends_the_stream(client: Client, owner: ScriptedOwner) -> None:
    owner.script.append([end(0), *map(event, range(1, 100))])
    assert client.take(2, "watch_vm", "vm") == [end(0), event(1)]
    assert places(owner) == [0]

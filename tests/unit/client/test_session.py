"""The WSLC session of both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from porthole.client import FailedPreconditionError, InvalidArgumentError, PortholeError
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.handshake import errors as theirs

if TYPE_CHECKING:
    from tests.unit.client.conftest import Client
    from tests.unit.client.scripted_owner import ScriptedOwner

NOT_BOOTED = theirs.FailedPreconditionError("VM_NOT_BOOTED", "its guest is still starting")
UNKNOWN_FIELD = b"\xc2\xb8\x02\x03new"  # number 5000, a string
PUBLISHED = GuestCapabilities.FromString(
    GuestCapabilities(kernel_release="6.18.26.3").SerializeToString() + UNKNOWN_FIELD
)
READ = pb.GetGuestCapabilitiesResponse(capabilities=PUBLISHED)
APPLIED = pb.ApplyGuestCapabilitiesResponse(swiotlb_option="swiotlb=0x3c000000,67108864")


def test_it_waits_for_the_guest_and_applies_what_it_published(
    client: Client, owner: ScriptedOwner
) -> None:
    owner.script.extend(
        [
            NOT_BOOTED,
            theirs.UnavailableError("GUEST_INIT_UNREACHABLE", ""),
            theirs.DeadlineExceededError("GUEST_INIT_SILENT", ""),
            *(READ, APPLIED),
        ]
    )
    assert client.call("play_session", "vm") == APPLIED
    [applied] = owner.requests(pb.ApplyGuestCapabilitiesRequest)
    assert applied.vm_id == "vm"
    assert UNKNOWN_FIELD in applied.capabilities.SerializeToString()
    assert [name for name, _ in owner.asked] == [
        *["GetGuestCapabilities"] * 4,
        "ApplyGuestCapabilities",
    ]


def test_a_guest_that_does_not_boot_in_time(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend([NOT_BOOTED] * 50)
    with pytest.raises(FailedPreconditionError) as caught:
        client.call("play_session", "vm", timeout_s=0.5)
    assert caught.value.reason == "VM_NOT_BOOTED"
    assert not owner.requests(pb.ApplyGuestCapabilitiesRequest)


@pytest.mark.parametrize("reason", ["WRONG_VM_KIND", "VM_TERMINATED"])
def test_a_vm_that_will_never_answer_is_not_waited_for(
    client: Client, owner: ScriptedOwner, reason: str
) -> None:
    owner.script.append(theirs.FailedPreconditionError(reason, ""))
    with pytest.raises(FailedPreconditionError):
        client.call("play_session", "vm")
    assert len(owner.asked) == 1


def test_a_pool_that_is_refused_is_an_error(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend([READ, theirs.InvalidArgumentError("SWIOTLB_OUTSIDE_RAM", "", bound=1)])
    with pytest.raises(InvalidArgumentError) as caught:
        client.call("play_session", "vm")
    assert caught.value.reason == "SWIOTLB_OUTSIDE_RAM"


def test_reading_alone_does_not_wait(client: Client, owner: ScriptedOwner) -> None:
    owner.script.append(NOT_BOOTED)
    with pytest.raises(PortholeError):
        client.call("get_guest_capabilities", "vm")
    assert len(owner.asked) == 1

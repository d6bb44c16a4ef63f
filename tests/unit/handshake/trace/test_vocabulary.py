"""The names of services in traces are those that the services have."""

from __future__ import annotations

import services.devicehost.__main__ as device_host
from services.guest_init.__main__ import GuestInitSettings
from services.handshake import events
from services.handshake.trace.vocabulary import (
    DEVICE_HOST,
    EMITTERS,
    FROM_DEVICE_HOST,
    GUEST_INIT,
    OF_DEVICE,
    OWNER,
    UNRECORDED_CALLERS,
    VOCABULARY,
)
from services.vm_owner.settings import OwnerSettings


def test_services_have_the_names_that_the_checker_looks_for() -> None:
    names = (OwnerSettings.name, GuestInitSettings.name, device_host.NAME)
    assert names == (OWNER, GUEST_INIT, DEVICE_HOST)


def test_every_event_but_a_read_has_its_emitters() -> None:
    assert set(EMITTERS) == set(VOCABULARY) - {events.WSLC_READ}
    assert {*FROM_DEVICE_HOST, events.DEVICE_ADDED, events.DEVICE_REMOVED} == set(OF_DEVICE)


def test_a_device_host_is_called_by_services_only() -> None:
    assert not any("DeviceHost" in name or name.endswith(".Machine") for name in UNRECORDED_CALLERS)

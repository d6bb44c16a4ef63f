"""Root ports: taken, freed, used up."""

from __future__ import annotations

import pytest

from services.handshake.errors import ResourceExhaustedError
from services.vm_owner.machines.qemu.ports import PORTS, Ports, pci_address


def test_the_lowest_free_port_is_taken() -> None:
    ports = Ports(3)
    assert [ports.take(), ports.take()] == [0, 1]
    ports.give_back(0)
    assert [ports.take(), ports.take()] == [0, 2]


def test_a_machine_without_a_free_port_says_so() -> None:
    ports = Ports(1)
    ports.take()
    with pytest.raises(ResourceExhaustedError, match="all 1 ports") as refused:
        ports.take()
    assert refused.value.reason == "GUEST_PORTS_EXHAUSTED"
    ports.give_back(0)
    assert ports.take() == 0


def test_a_device_is_alone_behind_its_port() -> None:
    assert [pci_address(port) for port in (0, 8, PORTS - 1)] == [
        "0000:01:00.0",
        "0000:09:00.0",
        "0000:10:00.0",
    ]
    assert len({pci_address(port) for port in range(PORTS)}) == PORTS

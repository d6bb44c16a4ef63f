"""The PCI Express root ports of a machine: a device is plugged into a port of its own.

Owns which ports are free. The number is fixed when the machine starts. Must not know QMP.
"""

from __future__ import annotations

from typing import Final

from services.handshake.errors import ResourceExhaustedError

PORTS: Final = 16
"""Root ports of a machine, and so the most devices that are plugged in at a time. A guest looks at
each when it boots, so more of them make every boot longer; the aggregate device needs one."""

PORTS_PER_SLOT: Final = 8
"""Functions of one slot of the root complex, each of which is a port."""

FIRST_SLOT: Final = 0x10
"""The first slot with ports. The lower ones are for devices that the machine starts with."""


def port_id(port: int) -> str:
    """Return QEMU's name of a port."""
    return f"port{port}"


def pci_address(port: int) -> str:
    """Return the PCI address that the device in a port has, as Linux names it.

    The machine has no other bridges, its ports follow each other by slot and function, and the
    firmware numbers the buses behind bridges in that order from 1 on, which Linux keeps. Were it
    otherwise, the guest would refuse the device (docs/kernel.md), or take another device's pool,
    which the device does not reach.
    """
    return f"0000:{port + 1:02x}:00.0"


class Ports:
    """The ports of one machine."""

    def __init__(self, count: int = PORTS) -> None:
        self._count = count
        self._free = list(range(count))

    def take(self) -> int:
        """Take a free port, the lowest.

        Raises:
            ResourceExhaustedError: GUEST_PORTS_EXHAUSTED.
        """
        if not self._free:
            raise ResourceExhaustedError(
                "GUEST_PORTS_EXHAUSTED",
                f"all {self._count} ports of the machine have a device; remove one, or add the "
                "directory as a share of the aggregate device, which has any number on one port",
                limit=self._count,
            )
        return self._free.pop(0)

    def give_back(self, port: int) -> None:
        """Free a port whose device the guest has let go of."""
        self._free.append(port)
        self._free.sort()

"""The process that removes what the VMs of a killed owner have: TAPs, directories, and devices.

Owns what is removed, and in which order: the guests end with the owner and let go of their devices
first. Must not know guests. services.vm_owner.sweeper starts it, and says which VMs there are.

    python -m services.vm_owner.sweep DIRECTORY DEVICE_HOST…

The directory is that of the directories of VMs, which their ids name; an address is that of a
device host which may have devices of them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.handshake.errors import PortholeError
from services.rpc.removal import remove_tree
from services.vm_owner.sweeper import read_left
from services.vm_owner.taps import delete_tap, tap_names

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 20
PAUSE_S: Final = 0.5
"""Between two attempts: a user-space guest ends in order as well, and unmounts its shares first."""

DEVICE_HOST_WAIT_S: Final = 2.0
"""Longest wait for a device host, which may have ended, too."""


def sweep(directory: Path, vm_id: str) -> dict[str, str]:
    """Remove what a VM has on the host; return what could not be removed, and why."""
    left: dict[str, str] = {}
    for tap in tap_names(vm_id):
        try:
            delete_tap(tap)
        except PortholeError as failure:
            left[tap] = failure.message
    try:
        left |= {str(path): why for path, why in remove_tree(directory / vm_id).items()}
    except OSError as error:
        left[str(directory)] = str(error)
    return left


def sweep_all(directory: Path, vms: Sequence[str]) -> None:
    """Remove what VMs have on the host, in as many attempts as that takes, or ATTEMPTS."""
    left: dict[str, dict[str, str]] = {vm_id: {} for vm_id in vms}
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        left = {vm_id: what for vm_id in left if (what := sweep(directory, vm_id))}
        if not left:
            return
    for vm_id, what in left.items():
        logger.warning("VM %s: %s", vm_id, what)


async def forget(address: str, vms: Sequence[str]) -> None:
    """Have a device host tear down what it has of VMs."""
    # An owner ends in order as a rule, and then this process is spared gRPC.
    from services.vm_owner.clients import dial_device_host

    try:
        device_host = await dial_device_host(address, DEVICE_HOST_WAIT_S)
        try:
            for vm_id in vms:
                await device_host.forget_vm(vm_id)
        finally:
            await device_host.close()
    except PortholeError as failure:
        logger.info("device host %s: %s", address, failure.message)


def main(directory: str, *device_hosts: str) -> None:
    """Wait for the end of the owner, and sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    vms = read_left(sys.stdin)
    if not vms:
        return
    sweep_all(Path(directory), vms)
    for address in device_hosts:
        asyncio.run(forget(address, vms))


if __name__ == "__main__":
    main(*sys.argv[1:])

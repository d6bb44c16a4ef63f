"""The aggregate devices of one VM: one for the ordinary user's shares, one for the elevated user's.

Owns the making of such a device, the addition and removal of its shares, and making it anew with
its shares after its device host has lost it. The caller of every method holds the VM's lock.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import NotFoundError, PortholeError
from services.handshake.options import build_options
from services.vm_owner.device_hosts import NewChild
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.operations import Operation
from services.vm_owner.shares import Share
from services.vm_owner.warnings import share_failed
from services.vm_owner.watch_items import DeviceChange

if TYPE_CHECKING:
    from services.vm_owner.device_hosts import DeviceHosts
    from services.vm_owner.guest_devices import GuestDevice, GuestDevices
    from services.vm_owner.record import VmRecord
    from services.vm_owner.shares import ShareKey, ShareSpec

logger = logging.getLogger(__name__)

TAGS: Final = {False: "porthole-shares", True: "porthole-shares-elevated"}
"""Mount tags; the key is whether the elevated user's device host serves the device."""

QUEUES: Final = 4
"""Request queues of an aggregate device, whose shares are used at the same time."""


class AggregateShares:
    """The shares of one VM that are directories of its aggregate devices.

    Args:
        record: The record of the VM.
        devices: Its devices.
        device_hosts: Both device hosts.
        shares: All shares of the VM, by id. Only the shares of aggregate devices are changed here.
    """

    def __init__(
        self,
        record: VmRecord,
        devices: GuestDevices,
        device_hosts: DeviceHosts,
        shares: dict[str, Share],
    ) -> None:
        self._record = record
        self._devices = devices
        self._device_hosts = device_hosts
        self._shares = shares

    async def add(self, share_id: str, spec: ShareSpec, key: ShareKey) -> Share:
        """Add a share to its device, which is made for the first share; the guest then sees it.

        After a failure nothing of the share is left; the device stays.

        Raises:
            PortholeError: See GuestDevices.add; or the answer of the device host.
        """
        device = await self._device(elevated=spec.elevated)
        share = Share(share_id, spec, key, device)
        await self._put(share)
        return share

    async def remove(self, share: Share) -> None:
        """Remove a share from its device; the guest no longer has it when this returns.

        Raises:
            PortholeError: The device host cannot be reached, or refuses; the share stays.
        """
        # No connection is made for this: a device host that was never reached has no share of ours.
        device_host = self._device_hosts.connected(elevated=share.spec.elevated)
        if device_host is not None:
            try:
                await device_host.remove_child(
                    self._record.vm_id, share.device.instance_id, share.share_id
                )
            except NotFoundError:
                logger.debug("share %s was removed already", share.share_id)
        del self._shares[share.share_id]
        self._publish(share, "removed")

    async def _put(self, share: Share) -> None:
        spec, vm_id = share.spec, self._record.vm_id
        device_host = await self._device_hosts.get(elevated=spec.elevated)
        child = NewChild(
            vm_id=vm_id,
            instance_id=share.device.instance_id,
            name=share.share_id,
            options=build_options(share.share_id, spec.options, None, vm_id),
            shared_dir=share.key.canonical_path,
        )
        try:
            await device_host.add_child(child)
            self._record.require(
                Operation.ADD_SHARE
            )  # the VM may have begun to shut down meanwhile
        except BaseException:
            try:
                await device_host.remove_child(vm_id, child.instance_id, child.name)
            except PortholeError as failure:
                logger.debug("share %s was not undone: %s", child.name, failure)
            raise
        self._shares[share.share_id] = share
        self._publish(share, "added")

    async def _device(self, *, elevated: bool) -> GuestDevice:
        """Return the aggregate device of a user; make it if there is none."""
        for device in self._devices.all():
            if device.spec.backend is None and device.spec.elevated == elevated:
                if await self._devices.status(device):
                    return device
                return await self._renew(device)
        return await self._devices.add(
            DeviceSpec(
                device_class=events.FS,
                tag=TAGS[elevated],
                extra_options=f"queues={QUEUES}",
                backend=None,
                elevated=elevated,
            )
        )

    async def _renew(self, device: GuestDevice) -> GuestDevice:
        """Make a device that its device host lost again; a share that fails becomes a warning."""
        lost = [share for share in self._shares.values() if share.device is device]
        for share in lost:
            del self._shares[share.share_id]
        await self._devices.remove(device.instance_id)
        renewed = await self._devices.add(device.spec)
        for share in lost:
            try:
                await self._put(replace(share, device=renewed))
            except PortholeError as failure:
                self._record.warn(share_failed(share.spec.host_path, failure))
        return renewed

    def _publish(self, share: Share, change: str) -> None:
        device = share.device
        detail = f"share {share.share_id} was {change}: {share.key.canonical_path}"
        self._record.publish(DeviceChange(device.instance_id, device.spec.tag, "attached", detail))

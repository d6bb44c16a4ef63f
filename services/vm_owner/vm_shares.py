"""The shares of one VM: added once, found again, replaced when lost, and removed.

Owns which shares the VM has, and which of them are still to be added. Each share has a device of
its own, or is part of an aggregate device (aggregates.py). The caller holds the VM's lock.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.errors import NotFoundError, PortholeError
from services.vm_owner.aggregates import AggregateShares
from services.vm_owner.allowed_devices import require_device
from services.vm_owner.bounds import require_room
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.operations import Operation
from services.vm_owner.shares import Share, require_no_conflict, share_key
from services.vm_owner.warnings import share_failed

if TYPE_CHECKING:
    from services.vm_owner.device_hosts import DeviceHosts
    from services.vm_owner.guest_devices import GuestDevices
    from services.vm_owner.host_paths import HostPaths
    from services.vm_owner.record import VmRecord
    from services.vm_owner.shares import ShareKey, ShareSpec


class VmShares:
    """All shares of one VM.

    Args:
        record: The record of the VM.
        devices: Its devices.
        device_hosts: Both device hosts.
        host_paths: Looks at the directories that are to be shared.
        pending: Shares that the VM gets by `add_pending`.

    Attributes:
        by_id: The shares by id, in the order in which they were added.
    """

    def __init__(
        self,
        record: VmRecord,
        devices: GuestDevices,
        device_hosts: DeviceHosts,
        host_paths: HostPaths,
        pending: tuple[ShareSpec, ...],
    ) -> None:
        self._record = record
        self._devices = devices
        self._host_paths = host_paths
        self._pending = pending
        self.by_id: dict[str, Share] = {}
        self._aggregates = AggregateShares(record, devices, device_hosts, self.by_id)

    async def add(self, spec: ShareSpec) -> tuple[Share, bool]:
        """Add a share.

        A share of the same directory, options and user is the same share. One whose device was
        lost with its device host is replaced.

        Returns:
            The new share, or an equal one; and whether it existed.

        Raises:
            AlreadyExistsError: SHARE_EXISTS, see require_no_conflict.
            FailedPreconditionError: VIRTIO_OFF or VIRTIOFS_OFF.
            ResourceExhaustedError: VM_TEXTS_LIMIT.
            PortholeError: See VmRecord.require, share_key, HostPaths.look and GuestDevices.add.
        """
        self._record.require(Operation.ADD_SHARE)
        config, vm_id = self._record.facts.config, self._record.vm_id
        require_device(config, events.FS, f"{Operation.ADD_SHARE} for VM {vm_id}", vm_id=vm_id)
        key = await self._host_paths.look(spec.host_path, partial(share_key, spec))
        equal = next((share for share in self.by_id.values() if share.key == key), None)
        if equal is None:
            return await self._add_new(spec, key), False
        require_no_conflict(replace(equal.spec, tag=equal.device.spec.tag), spec)
        if await self._device_host_has(equal):
            return equal, True
        return await self._replace_lost(equal, spec, key), False

    async def add_pending(self) -> None:
        """Add the shares that the VM is to have from the beginning.

        One that fails becomes a warning: a bad directory must not prevent the others.
        """
        pending, self._pending = self._pending, ()
        for spec in pending:
            try:
                await self.add(spec)
            except PortholeError as failure:
                self._record.warn(share_failed(spec.host_path, failure))

    async def remove(self, share_id: str) -> None:
        """Remove a share.

        Raises:
            NotFoundError: SHARE_NOT_FOUND.
            PortholeError: See VmRecord.require.
        """
        self._record.require(Operation.REMOVE_SHARE)
        share = self.by_id.get(share_id)
        if share is None:
            raise NotFoundError(
                "SHARE_NOT_FOUND",
                f"VM {self._record.vm_id} has no share {share_id!r}; GetVm lists them",
                vm_id=self._record.vm_id,
                share_id=share_id,
            )
        await self._remove(share)

    def forget_device(self, instance_id: str) -> None:
        """Forget the shares of a device that was removed."""
        for share in list(self.by_id.values()):
            if share.device.instance_id == instance_id:
                del self.by_id[share.share_id]

    def clear(self) -> None:
        """Forget all shares: the VM has ended."""
        self.by_id.clear()

    async def _add_new(self, spec: ShareSpec, key: ShareKey) -> Share:
        shown = [(share.key.canonical_path, share.spec.options) for share in self.by_id.values()]
        require_room(self._record.vm_id, "shares", shown, (key.canonical_path, spec.options))
        share_id = str(uuid.uuid4())
        if spec.aggregate:
            return await self._aggregates.add(share_id, spec, key)
        device = await self._devices.add(
            DeviceSpec(
                device_class=events.FS,
                tag=spec.tag or f"share-{share_id[:8]}",
                extra_options=spec.options,
                backend=key.canonical_path,
                elevated=spec.elevated,
            )
        )
        share = Share(share_id, spec, key, device)
        self.by_id[share_id] = share
        return share

    async def _device_host_has(self, share: Share) -> bool:
        device = await self._devices.status(share.device)
        return device is not None and (
            not share.spec.aggregate or share.share_id in device.children
        )

    async def _replace_lost(self, lost: Share, spec: ShareSpec, key: ShareKey) -> Share:
        """Add a share that its device host lost, with a new id (handshake.md section 10)."""
        await self._remove(lost)
        return await self._add_new(spec, key)

    async def _remove(self, share: Share) -> None:
        if share.spec.aggregate:
            await self._aggregates.remove(share)
        else:
            await self._devices.remove(share.device.instance_id)
            self.forget_device(share.device.instance_id)

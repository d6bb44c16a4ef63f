"""The devices of one VM: added, removed and shut down step by step, in the order of states.py.

Owns the entries (id, tag, options, socket) and the undoing of a failed addition. Must not know
shares or networking. The caller of every method that changes something holds the VM's lock.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    PortholeError,
)
from services.handshake.features import (
    AGGREGATE,
    APERTURE,
    RATE_LIMIT,
    SPOOFING,
    SWIOTLB_TOKEN,
    USER_NETWORK,
    feature_list,
)
from services.handshake.options import (
    SPOOFING_REFUSED,
    FsOptions,
    NetOptions,
    build_options,
    parse_fs_options,
    parse_net_options,
)
from services.vm_owner.adapter_links import AdapterLinks
from services.vm_owner.bounds import check_length, require_room
from services.vm_owner.device_hosts import (
    Announcement,
    DeviceHostVersion,
    NewDevice,
    UserNetwork,
    announce,
)
from services.vm_owner.device_names import check_name
from services.vm_owner.machines import AttachSpec
from services.vm_owner.operations import Operation
from services.vm_owner.states import (
    ADD_ORDER,
    BEST_EFFORT,
    REMOVE_ORDER,
    SHUTDOWN_ORDER,
    UNDO,
    DeviceStep,
    GuestDeviceState,
    guest_device_life,
)
from services.vm_owner.warnings import device_host_unsupported
from services.vm_owner.watch_items import DeviceChange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from services.handshake.pool import SwiotlbPool
    from services.handshake.rate_limit import RateLimits
    from services.handshake.state_machine import StateMachine
    from services.vm_owner.device_hosts import DeviceHosts, DeviceStatus
    from services.vm_owner.machines import Machine
    from services.vm_owner.record import VmRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A requested device.

    Attributes:
        device_class: events.FS or events.NET.
        extra_options: "key=value;flag" without name, token and vm_id.
        backend: A directory (FS); the name of a TAP interface, or a user-mode network (NET). None:
            an aggregate (FS), whose shares come and go.
        elevated: Whether the elevated user's device host serves it.
        client_address: The guest's address on a network adapter, with prefix length; empty: none.
        gateway_address: The gateway of a network adapter; empty: none.
        client_address_ipv6: As client_address.
        name_servers: Addresses of name servers that the guest is told of with the adapter.
        mtu: Bytes of payload per frame of an adapter; 0: as many as Ethernet has by default.
    """

    device_class: str
    tag: str
    extra_options: str
    backend: str | UserNetwork | None
    elevated: bool = False
    client_address: str = ""
    gateway_address: str = ""
    client_address_ipv6: str = ""
    name_servers: tuple[str, ...] = ()
    mtu: int = 0


@dataclass(slots=True)
class GuestDevice:
    """The entry of one device.

    Attributes:
        instance_id: Its id; empty before IDENTIFY unless the client has chosen it.
        aperture: The part of the pool that it has for itself; None: it has none, or before RESERVE.
        options: The whole options string; empty before REGISTER.
        device_host_version: What its device host announced; nothing before REGISTER.
        socket_path: Its vhost-user socket; empty before STORE.
        created_socket: The socket that the device host answered; empty before CREATE.
    """

    spec: DeviceSpec
    life: StateMachine[GuestDeviceState, DeviceStep] = field(
        default_factory=lambda: guest_device_life("the device")
    )
    instance_id: str = ""
    aperture: SwiotlbPool | None = None
    options: str = ""
    device_host_version: DeviceHostVersion = field(
        default_factory=lambda: DeviceHostVersion("", frozenset())
    )
    socket_path: str = ""
    created_socket: str = ""


class GuestDevices:
    """The devices of one VM.

    Args:
        record: Its record: token, trace, watchers, and the state, which may not allow devices.
        device_hosts: Both device hosts.
        machine: The machine that devices are attached to.
    """

    def __init__(self, record: VmRecord, device_hosts: DeviceHosts, machine: Machine) -> None:
        self._record = record
        self._device_hosts = device_hosts
        self._machine = machine
        self._links = AdapterLinks(machine.set_link)
        self._entries: dict[str, GuestDevice] = {}
        self._do: dict[DeviceStep, Callable[[GuestDevice], Awaitable[None]]] = {
            DeviceStep.IDENTIFY: self._identify,
            DeviceStep.RESERVE: self._reserve,
            DeviceStep.REGISTER: self._register,
            DeviceStep.CREATE: self._create,
            DeviceStep.STORE: self._store,
            DeviceStep.ATTACH: self._attach,
            DeviceStep.MARK_SHUTTING_DOWN: self._mark_shutting_down,
            DeviceStep.TEAR_DOWN: self._tear_down,
            DeviceStep.FORGET: self._forget,
            DeviceStep.DETACH: self._detach,
            DeviceStep.GIVE_BACK: self._give_back,
        }

    def all(self) -> Sequence[GuestDevice]:
        """Return the devices that have a socket, in the order in which they were added."""
        return [device for device in self._entries.values() if device.socket_path]

    def find(self, instance_id: str) -> GuestDevice | None:
        """Return a device by its id."""
        return self._entries.get(instance_id)

    def has_tag(self, tag: str) -> bool:
        """Return whether a tag is taken."""
        return any(device.spec.tag == tag for device in self._entries.values())

    async def status(self, device: GuestDevice) -> DeviceStatus | None:
        """Return the status of a device; None: its device host does not have the device.

        A device host that has restarted has no devices.

        Raises:
            UnavailableError: The device host cannot be reached.
        """
        device_host = await self._device_hosts.get(elevated=device.spec.elevated)
        known = await device_host.list_devices(self._record.vm_id)
        return next((each for each in known if each.instance_id == device.instance_id), None)

    async def add(self, spec: DeviceSpec, instance_id: str = "") -> GuestDevice:
        """Add a device; the guest has it when this returns.

        After a failure nothing of the device is left, here or at the peers.

        Args:
            spec: The device.
            instance_id: Its id, which no device of the VM has; empty: one is made.

        Raises:
            InvalidArgumentError: The tag or the options are wrong.
            AlreadyExistsError: TAG_EXISTS.
            ResourceExhaustedError: VM_TEXTS_LIMIT, or GUEST_PORTS_EXHAUSTED.
            FailedPreconditionError: The VM is shutting down, or began to while this ran; or
                DEVICE_HOST_FEATURE, for an aggregate and with strict isolation; or
                ISOLATION_WITHOUT_POOL.
            PortholeError: A peer refused, or cannot be reached.
        """
        device = GuestDevice(spec, instance_id=instance_id)
        try:
            for step in ADD_ORDER:
                self._record.require(Operation.ADD_DEVICE)
                await self._do[step](device)
                device.life.fire(step)
            self._record.require(Operation.ADD_DEVICE)
        except BaseException:
            await self._run(UNDO[device.life.state], [device])
            raise
        self._publish(device, "attached", "the guest has it")
        return device

    async def remove(self, instance_id: str) -> None:
        """Remove a device. It is forgotten even if a peer refuses or cannot be reached.

        Raises:
            NotFoundError: DEVICE_NOT_FOUND.
        """
        await self._run(REMOVE_ORDER, [self._known(instance_id)])

    async def set_rate_limits(self, instance_id: str, limits: RateLimits) -> RateLimits:
        """Change how fast frames of an adapter may go; return what is in force.

        Raises:
            NotFoundError: DEVICE_NOT_FOUND.
            FailedPreconditionError: NOT_AN_ADAPTER, DEVICE_HOST_FEATURE, or the state of the VM
                does not allow it.
            PortholeError: The device host refused, or cannot be reached.
        """
        self._record.require(Operation.SET_RATE_LIMIT)
        device = self._known(instance_id)
        device_host = await self._device_hosts.get(elevated=device.spec.elevated)
        _require(await device_host.version(), RATE_LIMIT, "leave the rate limit out")
        return await device_host.set_rate_limits(self._record.vm_id, instance_id, limits)

    def _known(self, instance_id: str) -> GuestDevice:
        device = self._entries.get(instance_id)
        if device is None:
            raise NotFoundError(
                "DEVICE_NOT_FOUND",
                f"VM {self._record.vm_id} has no device {instance_id!r}; GetVm lists them",
                vm_id=self._record.vm_id,
                instance_id=instance_id,
            )
        return device

    def report_link(self, instance_id: str, is_up: bool) -> None:
        """Have the guest learn of the link of an adapter, as its device host has reported it.

        The VM's lock is not needed.
        """
        self._links.report(instance_id, is_up)

    async def shut_down(self) -> None:
        """Mark all devices, then tear down each, then forget them. The VM accepts no new ones."""
        try:
            await self._run(SHUTDOWN_ORDER, list(self._entries.values()))
        finally:
            await self._links.close()
        await self._device_hosts.forget(self._record.vm_id)

    async def _run(self, order: Sequence[DeviceStep], devices: Sequence[GuestDevice]) -> None:
        # A step is done for all devices at once: a peer that answers late holds up each call of a
        # step, and the VM's lock is held.
        for step in order:
            await asyncio.gather(*(self._take(step, device) for device in devices))

    async def _take(self, step: DeviceStep, device: GuestDevice) -> None:
        try:
            await self._do[step](device)
        except PortholeError as failure:
            if step not in BEST_EFFORT:
                raise
            self._report_failure(device, step, failure)
        device.life.fire(step)

    async def _identify(self, device: GuestDevice) -> None:
        device.instance_id = device.instance_id or str(uuid.uuid4())

    async def _reserve(self, device: GuestDevice) -> None:
        device.aperture = self._machine.reserve(device.instance_id).aperture

    async def _give_back(self, device: GuestDevice) -> None:
        self._machine.give_back(device.instance_id)

    async def _register(self, device: GuestDevice) -> None:
        spec, record = device.spec, self._record
        check_name(spec.device_class, spec.tag)
        if self.has_tag(spec.tag):
            raise AlreadyExistsError(
                "TAG_EXISTS",
                f"VM {record.vm_id} has a device with tag {spec.tag!r} already; choose another "
                "tag, or remove that device first",
                vm_id=record.vm_id,
                tag=spec.tag,
            )
        check_length(spec.tag, spec.extra_options)
        specs = [each.spec for each in self._entries.values()]
        require_room(record.vm_id, "devices", map(_texts, specs), _texts(spec))
        parse = parse_fs_options if spec.device_class == events.FS else parse_net_options
        options = parse(build_options(spec.tag, spec.extra_options, record.token, record.vm_id))
        if device.aperture is not None:
            self._require_own_pool(device.aperture)
        version = await self._version(device, options)
        token = record.token if SWIOTLB_TOKEN in version.features else None
        device.device_host_version = version
        device.options = build_options(
            spec.tag, spec.extra_options, token, record.vm_id, device.aperture
        )
        self._entries[device.instance_id] = device

    def _require_own_pool(self, aperture: SwiotlbPool) -> None:
        """Refuse a device that would reach nothing: the rest of the guest's memory is private."""
        record = self._record
        if record.pool is None or not record.pool.contains(aperture):
            raise FailedPreconditionError(
                "ISOLATION_WITHOUT_POOL",
                f"VM {record.vm_id} has strict isolation: the device would have {aperture} for "
                f"itself, and the guest has announced {record.pool or 'no pool'}. Boot a kernel "
                "that takes its pools where the machine places them (make kernel), or create the "
                "VM without strict isolation",
                vm_id=record.vm_id,
            )

    async def _version(
        self, device: GuestDevice, options: FsOptions | NetOptions
    ) -> DeviceHostVersion:
        # Asked for before every device: the device host may be new, or have restarted as another.
        spec = device.spec
        version = await (await self._device_hosts.get(elevated=spec.elevated)).version()
        if spec.backend is None:
            _require(version, AGGREGATE, "add the share as a device of its own")
        if isinstance(spec.backend, UserNetwork):
            _require(version, USER_NETWORK, "use the networking mode nat")
        if isinstance(options, NetOptions):
            if options.spoofing == SPOOFING_REFUSED:
                _require(version, SPOOFING, "ask for spoofing=allow")
            if options.limit_tx or options.limit_rx:
                _require(version, RATE_LIMIT, "leave the rate limit out")
        if device.aperture is not None:
            for feature in (SWIOTLB_TOKEN, APERTURE):
                _require(version, feature, "create the VM without strict isolation")
        return version

    async def _create(self, device: GuestDevice) -> None:
        record, spec = self._record, device.spec
        version = device.device_host_version
        # Emitted before any call that can fail: the undoing of a failure emits an event, too.
        features = feature_list(version.features)
        record.emit(events.device_added(*self._named(device), device.options, features))
        if record.token is not None and SWIOTLB_TOKEN not in version.features:
            self._warn_of_device_host(version, elevated=spec.elevated)
        device_host = await self._device_hosts.get(elevated=spec.elevated)
        # Announced before every device: the device host may be new, or have restarted.
        await announce(device_host, version, announcement(record))
        device.created_socket = await device_host.create_device(
            NewDevice(
                vm_id=record.vm_id,
                instance_id=device.instance_id,
                device_class=spec.device_class,
                tag=spec.tag,
                options=device.options,
                backend=spec.backend,
            )
        )

    def _warn_of_device_host(self, version: DeviceHostVersion, *, elevated: bool) -> None:
        warning = device_host_unsupported(version.software, elevated=elevated)
        if self._record.warn_once(warning):
            self._record.emit(events.device_host_unsupported(self._record.vm_id, warning.text))

    async def _store(self, device: GuestDevice) -> None:
        device.socket_path = device.created_socket

    async def _attach(self, device: GuestDevice) -> None:
        await self._machine.attach_device(_attachment(device))
        if device.spec.device_class == events.NET:
            self._links.attached(device.instance_id)

    async def _mark_shutting_down(self, device: GuestDevice) -> None:
        self._publish(device, "shutting_down", "it is being removed")
        if device.socket_path:
            await self._machine.release_device(device.instance_id)

    async def _tear_down(self, device: GuestDevice) -> None:
        # No connection is made for this: a device host that was never reached has no device.
        device_host = self._device_hosts.connected(elevated=device.spec.elevated)
        if device_host is None:
            return
        try:
            await device_host.remove_device(self._record.vm_id, device.instance_id)
        except NotFoundError:
            logger.debug("device %s was removed already", device.instance_id)

    async def _forget(self, device: GuestDevice) -> None:
        del self._entries[device.instance_id]
        self._links.forget(device.instance_id)
        self._record.emit(events.device_removed(*self._named(device)))

    async def _detach(self, device: GuestDevice) -> None:
        await self._machine.detach_device(device.instance_id)

    def _report_failure(
        self, device: GuestDevice, step: DeviceStep, failure: PortholeError
    ) -> None:
        logger.warning("device %s: %s failed: %s", device.instance_id, step, failure.message)
        self._publish(device, "shutting_down", f"{step} failed: {failure.message}")

    def _named(self, device: GuestDevice) -> tuple[str, str, str, str]:
        spec = device.spec
        return self._record.vm_id, device.instance_id, spec.device_class, spec.tag

    def _publish(self, device: GuestDevice, state: str, detail: str) -> None:
        self._record.publish(DeviceChange(device.instance_id, device.spec.tag, state, detail))


def _require(version: DeviceHostVersion, feature: str, otherwise: str) -> None:
    """Refuse a device whose device host lacks a feature that it cannot do without."""
    if feature not in version.features:
        raise FailedPreconditionError(
            "DEVICE_HOST_FEATURE",
            f"the device host (version {version.software or 'unknown'}) does not announce the "
            f"feature {feature!r}; {otherwise}, or run a newer device host",
            feature=feature,
        )


def announcement(record: VmRecord) -> Announcement:
    """Return what device hosts are to know of a VM now."""
    in_force = record.report.message if record.report else b""
    return Announcement(record.vm_id, record.token, in_force)


def _attachment(device: GuestDevice) -> AttachSpec:
    spec, queues, mac = device.spec, 1, None
    if spec.device_class == events.FS:
        queues = parse_fs_options(device.options).queues
    else:
        mac = parse_net_options(device.options).client_mac
    return AttachSpec(
        instance_id=device.instance_id,
        device_class=spec.device_class,
        tag=spec.tag,
        socket_path=device.socket_path,
        client_address=spec.client_address,
        gateway_address=spec.gateway_address,
        client_address_ipv6=spec.client_address_ipv6,
        name_servers=spec.name_servers,
        mac_address=mac.hex(":") if mac else "",
        mtu=spec.mtu,
        queues=queues,
    )


def _texts(spec: DeviceSpec) -> tuple[str, ...]:
    # What a user-mode network is made of is the owner's, and counts for nothing.
    return spec.tag, spec.backend if isinstance(spec.backend, str) else "", spec.extra_options

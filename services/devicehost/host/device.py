"""One device of the host: its parts, its state, its doorbells, and the reports of its changes.

Owns the order in which the parts of a device are made and torn down. Reports go to callbacks, which
are called with no lock held. Must not know other devices, gRPC or traces.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices import FsDevice, NetDevice
from services.devicehost.host import misplaced
from services.devicehost.host.states import DeviceEvent, DeviceState, hosted_device_life
from services.devicehost.throttle import Throttle
from services.devicehost.vhost_user import Backend, Listener, ListeningSocket
from services.handshake import events
from services.handshake.errors import (
    FailedPreconditionError,
    PermissionDeniedError,
    PortholeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.devicehost.accounting import Counters, Usage
    from services.devicehost.devices.net.user.ports import Ports
    from services.devicehost.memory import Access, RegionTable
    from services.devicehost.virtio.device import VirtioDevice
    from services.handshake.exhaustion import Exhaustion
    from services.handshake.options import FsOptions
    from services.handshake.pool import SwiotlbPool
    from services.handshake.rate_limit import RateLimits

_LOG = logging.getLogger(__name__)

MAX_DOORBELLS: Final = 8
"""Most data queues of a device with a kick descriptor; a pair of queues of virtio-net counts as one
(docs/adr/0007-doorbells.md)."""

FS_HIGH_PRIORITY_QUEUE: Final = 0
NET_CONTROL_QUEUE: Final = 2 * MAX_DOORBELLS
"""Of an adapter with as many pairs as there are places; one with fewer has a place left for it."""
"""Index of virtio-fs's high-priority queue (VIRTIO 1.2, section 5.11.2); it moves no data."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device at one moment.

    Attributes:
        vm_id: UUID of its VM.
        instance_id: Of the device.
        device_class: events.FS or events.NET.
        tag: Name that the guest sees.
        options: The options string, verbatim.
        pool: Its aperture; None without one.
        state: Where it is in its life.
        socket_path: Of its vhost-user socket.
        counters: Its counters.
        bounds: The use of its bounded resources.
        guest_descriptors: Descriptors of guest memory that it holds now.
        children: Names of the shares of an aggregate.
        link_up: Whether an adapter has its link; None for other devices.
    """

    vm_id: str
    instance_id: str
    device_class: str
    tag: str
    options: str
    pool: SwiotlbPool | None
    state: DeviceState
    socket_path: Path
    counters: Counters
    bounds: tuple[Usage, ...] = ()
    guest_descriptors: int = 0
    children: tuple[str, ...] = ()
    link_up: bool | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The facts of a device that never change; see DeviceInfo."""

    vm_id: str
    instance_id: str
    device_class: str
    tag: str
    options: str
    socket_path: Path


class HostedDevice:
    """One device from its creation to its removal, and the Observer of its own back-end.

    Attributes:
        identity: Its facts that never change.
        access: How it reaches guest memory.
        meter: Its counters and bounds.
        never_served: Why the last front-end went without a request that was ever served; None if it
            did not.
    """

    def __init__(
        self,
        identity: Identity,
        access: Access,
        *,
        is_known: Callable[[], bool],
        emit: Callable[[events.Event], None],
        on_change: Callable[[DeviceInfo, str], None],
        on_exhausted: Callable[[DeviceInfo, Exhaustion], None],
    ) -> None:
        """Make an entry; `start` makes the device itself.

        Args:
            identity: The facts of the device.
            access: How it is to reach guest memory.
            is_known: Returns whether the device is in the registry.
            emit: Called with each event of the handshake, on any thread.
            on_change: Called with each new state and its reason, on any thread.
            on_exhausted: Called once per episode of exhaustion, on any thread; must not wait.
        """
        self.identity = identity
        self.access = access
        self.meter = DeviceMeter()
        self.never_served: FailedPreconditionError | None = None
        self._is_known = is_known
        self._emit = emit
        self._on_change = on_change
        self._on_exhausted = on_exhausted
        self.meter.bounds.on_exhausted = self._exhausted
        self._life = hosted_device_life(f"device {identity.instance_id} ({identity.tag})")
        self._lock = threading.Lock()
        self._parts_lock = threading.Lock()
        self._doorbells: set[int] = set()
        self._emitted: set[str] = set()
        self._throttle = Throttle()
        self._has_answered = False
        self._is_explained = False
        self._first_failure: PortholeError | None = None
        self._descriptor_throttle = Throttle()
        self._device: VirtioDevice | None = None
        self._backend: Backend | None = None
        self._listener: Listener | None = None

    @property
    def state(self) -> DeviceState:
        """Where the device is in its life."""
        return self._life.state

    def info(self) -> DeviceInfo:
        """Return the device as it is now; this counts what is in use, so it may take a while."""
        me, device = self.identity, self._device
        return DeviceInfo(
            me.vm_id,
            me.instance_id,
            me.device_class,
            me.tag,
            me.options,
            self.access.pool,
            self.state,
            me.socket_path,
            self.meter.snapshot(),
            self.meter.bounds.usage(),
            self.meter.guest_descriptors,
            device.children if isinstance(device, FsDevice) else (),
            device.link_up if isinstance(device, NetDevice) else None,
        )

    def start(
        self,
        make: Callable[[Access, DeviceMeter], VirtioDevice],
        *,
        table: RegionTable | None = None,
        sock: ListeningSocket | None = None,
        offers_config: bool = True,
    ) -> None:
        """Make the device and listen; its socket is connectable afterwards.

        Args:
            make: Makes the virtio device.
            table: An empty table with its own guard; None: one that accepts sealed memory only.
            sock: A socket that the device takes over; None: it listens at the identity's path.
            offers_config: Whether a front-end can ask for the configuration space.

        Raises:
            PortholeError: It cannot be made; nothing is left behind.
        """
        with self._parts_lock:
            if self.state is DeviceState.SHUTTING_DOWN:
                raise FailedPreconditionError(
                    "HOST_SHUTTING_DOWN", "the device host is shutting down and takes no device"
                )
            device = make(self.access, self.meter)
            backend = Backend(
                device, self.access, self.meter, self, offers_config=offers_config, table=table
            )
            self._device, self._backend = device, backend
            if isinstance(device, NetDevice):
                device.on_link_change = self._link_changed
            try:
                listening = sock or ListeningSocket.at(self.identity.socket_path)
                self._listener = Listener(listening, backend)
            except BaseException:
                self._device = self._backend = None
                device.close()
                raise

    def add_child(self, name: str, options: FsOptions, shared_dir: Path) -> None:
        """Add a share to an aggregate; see FsDevice.add_child."""
        self._aggregate().add_child(name, options, shared_dir)

    def remove_child(self, name: str) -> None:
        """Remove a share from an aggregate; see FsDevice.remove_child."""
        self._aggregate().remove_child(name)

    def ports(self) -> Ports:
        """Return the ports of an adapter with a user-mode network.

        Raises:
            FailedPreconditionError: NO_USER_NETWORK.
        """
        device, me = self._device, self.identity
        if isinstance(device, NetDevice):
            return device.ports
        raise FailedPreconditionError(
            "NO_USER_NETWORK",
            f"device {me.instance_id} is of class {me.device_class} and in state {self.state}; "
            "only an adapter with a user-mode network that is up maps ports",
            instance_id=me.instance_id,
        )

    def set_rate_limits(self, limits: RateLimits) -> RateLimits:
        """Change how fast frames of an adapter may go; see NetDevice.set_rate_limits.

        Raises:
            FailedPreconditionError: NOT_AN_ADAPTER.
        """
        device, me = self._device, self.identity
        if isinstance(device, NetDevice):
            return device.set_rate_limits(limits)
        raise FailedPreconditionError(
            "NOT_AN_ADAPTER",
            f"device {me.instance_id} is of class {me.device_class} and in state {self.state}; "
            "only an adapter that is up has rate limits",
            instance_id=me.instance_id,
        )

    def mark_shutting_down(self) -> bool:
        """Refuse everything new from now on.

        Returns:
            Whether this call has marked it; of several callers, only that one tears it down.
        """
        return self._fire(DeviceEvent.REMOVE, "removed")

    def tear_down(self) -> None:
        """Drop the front-end, unmap guest memory, remove the socket, release the back end.

        If another thread does so, this waits until it is done.
        """
        with self._parts_lock:
            if self._listener is not None and self._device is not None:
                self._listener.close(self._device.close)
            self._listener = self._device = self._backend = None

    def connected(self) -> None:
        """Report that a front-end has connected."""
        self._has_answered = self._is_explained = False
        self._first_failure = None
        self._fire(DeviceEvent.CONNECT, "a front-end has connected")

    def attached(self) -> None:
        """Report that guest memory is attached; the first time, emit the handshake's event."""
        self._fire(DeviceEvent.ATTACH, f"guest memory is attached: {self.access}")
        event = self.access.attached_event(*self._names())
        if event is not None:
            self._emit_once(event)

    def register_doorbell(self, queue: int) -> None:
        """Let a queue have a kick descriptor.

        Raises:
            PermissionDeniedError: DEVICE_UNKNOWN, DEVICE_SHUTTING_DOWN or DOORBELL_LIMIT.
        """
        me = self.identity
        if not self._is_known():
            raise PermissionDeniedError(
                "DEVICE_UNKNOWN",
                f"device {me.instance_id} is not a device of VM {me.vm_id}",
                instance_id=me.instance_id,
            )
        with self._lock:
            if self.state is DeviceState.SHUTTING_DOWN:
                raise PermissionDeniedError(
                    "DEVICE_SHUTTING_DOWN",
                    f"device {me.instance_id} is shutting down and takes no doorbell",
                    instance_id=me.instance_id,
                )
            place = _doorbell_place(me.device_class, queue)
            if place is None:
                return
            taken = {_doorbell_place(me.device_class, each) for each in self._doorbells}
            if place not in taken and len(taken) >= MAX_DOORBELLS:
                raise PermissionDeniedError(
                    "DOORBELL_LIMIT",
                    f"device {me.instance_id} has {MAX_DOORBELLS} doorbells, the most that a "
                    f"device may have; queue {queue} gets none",
                    instance_id=me.instance_id,
                    bound=MAX_DOORBELLS,
                )
            self._doorbells.add(queue)

    def unregister_doorbell(self, queue: int) -> None:
        """Note that a queue has given up its kick descriptor."""
        with self._lock:
            self._doorbells.discard(queue)

    def first_request(self) -> None:
        """Emit the event of the first request; a queue's thread calls this."""
        self._has_answered = True
        self._emit_once(events.first_request(*self._names()))

    def failed(self, error: PortholeError) -> None:
        """Log why the device needs a reset, at most once a second, and report it."""
        why = ""
        if misplaced.is_misplaced(error) and not self._has_answered:
            self._first_failure, self._is_explained = error, True
            has_pool = self.access.pool is not None
            why = f". {misplaced.failed(error, self.identity.device_class, has_pool=has_pool)}"
        self._warn(f"needs a reset: {error}", error.reason, why)
        self._fire(DeviceEvent.FAIL, error.message)
        if why:
            self._on_change(self.info(), f"its first request failed: {error.message}{why}")

    def was_reset(self) -> None:
        """Report that the device serves again."""
        self._fire(DeviceEvent.RESET, "reset")

    def kept_out(self, error: PortholeError) -> None:
        """Report at once that memory or a ring lies where the device does not reach it.

        The front-end may stay, and the guest wait, for ever.
        """
        if not misplaced.is_misplaced(error) or self._is_explained:
            return  # of other refusals the front-end's thread logs all that there is to say
        self._is_explained = True
        what = f"keeps its guest out, and no ring was ever served: {error.message}"
        why = f". {misplaced.refused(error, has_pool=self.access.pool is not None)}"
        self._warn(what, error.reason, why)
        if self.state is not DeviceState.SHUTTING_DOWN:
            self._on_change(self.info(), what + why)

    def descriptors_closed(self, count: int, why: str) -> None:
        """Log that descriptors of guest memory were closed, at most once a second."""
        held_back = self._descriptor_throttle.admit()
        if held_back is not None:
            me = self.identity
            _LOG.info(
                "device %s (%s %r of VM %s): descriptors of guest memory: %d closed, since %s; "
                "%d held [%d more like it not logged]",
                *(me.instance_id, me.device_class, me.tag, me.vm_id),
                *(count, why, self.meter.guest_descriptors, held_back),
            )

    def disconnected(self, kept_out: PortholeError | None) -> None:
        """Report that the front-end has gone, and if no request was ever served, why."""
        why = detail = "the front-end has gone"
        self.never_served = None
        cause = kept_out or (None if self._has_answered else self._first_failure)
        if cause is not None:
            what = "ring" if kept_out is not None else "request"
            why += f", and no {what} was ever served: {cause.message} [{cause.reason}]"
            self.never_served = FailedPreconditionError(
                "RINGS_NEVER_SERVED", why, refused=cause.reason
            )
            detail = f"{why} [{self.never_served.reason}]"
            if not self._is_explained:
                self._warn(f"was of no use: {why}", self.never_served.reason)
        self._fire(DeviceEvent.DISCONNECT, detail)

    def _warn(self, what: str, reason: str, why: str = "") -> None:
        held_back = self._throttle.admit()
        if held_back is not None:
            me = self.identity
            _LOG.warning(
                "device %s (%s %r of VM %s) %s [%s; %d more like it not logged]%s",
                *(me.instance_id, me.device_class, me.tag, me.vm_id),
                *(what, reason, held_back, why),
            )

    def _aggregate(self) -> FsDevice:
        device, me = self._device, self.identity
        if isinstance(device, FsDevice):
            return device
        raise FailedPreconditionError(
            "NO_AGGREGATE",
            f"device {me.instance_id} is of class {me.device_class} and in state {self.state}; "
            "shares are added to an aggregate device that is up",
            instance_id=me.instance_id,
        )

    def _link_changed(self, up: bool, why: str) -> None:
        """Tell the guest, the trace and the watchers; a thread of the back end calls this."""
        if self.state is DeviceState.SHUTTING_DOWN:
            return
        backend = self._backend
        if backend is not None:
            backend.config_changed()
        self._emit(events.link_changed(*self._names(), up=up, why=why))
        self._on_change(self.info(), f"the link is {'up' if up else 'down'}: {why}")

    def _exhausted(self, exhaustion: Exhaustion) -> None:
        me = self.identity
        _LOG.warning(
            "device %s (%s %r of VM %s): %s",
            *(me.instance_id, me.device_class, me.tag, me.vm_id, exhaustion),
        )
        self._on_exhausted(self.info(), exhaustion)

    def _names(self) -> tuple[str, str, str, str]:
        me = self.identity
        return me.vm_id, me.instance_id, me.device_class, me.tag

    def _emit_once(self, event: events.Event) -> None:
        """Emit an event the first time only; a front-end that reconnects begins no handshake."""
        with self._lock:
            if event.name in self._emitted:
                return
            self._emitted.add(event.name)
        self._emit(event)

    def _fire(self, event: DeviceEvent, detail: str) -> bool:
        """Fire an event and report a new state; return whether the state is a new one."""
        with self._lock:
            before = self.state
            after = self._life.fire(event)
        if after is before:
            return False
        self._on_change(self.info(), detail)
        return True


def _doorbell_place(device_class: str, queue: int) -> int | None:
    """Return which of the places for doorbells a queue takes; None: it is not counted."""
    if device_class == events.NET:
        return queue // 2 if queue < NET_CONTROL_QUEUE else None
    return None if queue == FS_HIGH_PRIORITY_QUEUE else queue

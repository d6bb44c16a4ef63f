"""One device in a process of its own, for the VM of QEMU, libvirt or Cloud Hypervisor.

Owns the order of start and end. Unlike the device host, which serves all VMs, this process may map
all of guest memory and accept memory that cannot be sealed. Must not know flags, gRPC or telemetry.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath, peer_writes
from services.devicehost.devices import DEVICE_TYPES, FsBackend, make_device
from services.devicehost.devices.fs.host_files.credentials import CAP_SYS_RESOURCE, give_up
from services.devicehost.devices.fs.host_files.descriptors import serve_one_guest
from services.devicehost.host.device import DeviceInfo, HostedDevice, Identity
from services.devicehost.host.states import DeviceState
from services.devicehost.memory import OwnRisk, RegionTable
from services.devicehost.vhost_user import ListeningSocket
from services.handshake.errors import InvalidArgumentError
from services.handshake.options import build_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.devicehost.devices import DeviceOptions, NetBackend, UserBackend
    from services.devicehost.memory import Access
    from services.handshake.ports import PortMapping

__all__ = [
    "LEAST_DESCRIPTORS",
    "VM_ID",
    "StandaloneDevice",
    "limit_descriptors",
    "open_socket",
    "serve",
    "serve_one_guest",
]

VM_ID: Final = str(uuid.UUID(int=0))
"""Stands for the one VM of this process, whose id is not known."""

LEAST_DESCRIPTORS: Final = 256
"""The lowest limit of descriptors with which a device starts."""

_NO_SIGNAL: Final = b"\0"
_INTERRUPT: Final = bytes([peer_writes.SIGNAL])

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StandaloneDevice:
    """The device that the process is to serve.

    Attributes:
        backend: The directory, the TAP interface or the user-mode network.
        name: The mount tag, or the adapter's name.
        access: How the device reaches guest memory.
        options: Further options, "key=value;flag", as a share or an adapter takes them.
        persistent: Whether to wait for a further front-end when one has gone.
        ports: Ports of the host to be forwarded, of an adapter with a user-mode network.
        offers_config: Whether a front-end can ask for the configuration space. Most front-ends keep
            one of their own, and QEMU 7.2 before 7.2.3 crashes when a device needlessly offers it.
    """

    backend: FsBackend | NetBackend | UserBackend
    name: str
    access: Access
    options: str = ""
    persistent: bool = False
    ports: tuple[PortMapping, ...] = ()
    offers_config: bool = False


class _Ending:
    """The main thread's wait for a reason to end: a signal, or a call of `begin` by a thread.

    Python does not run a signal's handler while the main thread waits for a lock. So the reasons go
    through a pipe: the interpreter itself writes a signal's number to it (signal.set_wakeup_fd).
    """

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        self._why = ""
        os.set_blocking(self._write_fd, False)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave_to_the_pipe)

    def begin(self, why: str) -> None:
        """End the wait; from any thread."""
        self._why = why
        with contextlib.suppress(BlockingIOError):  # full: other reasons are in it already
            os.write(self._write_fd, _NO_SIGNAL)

    def wait(self) -> str:
        """Wait for the first reason to end."""
        while (said := os.read(self._read_fd, 1)) == _INTERRUPT:
            continue  # a thread was got out of a write, which ends nothing else
        return self._why if said == _NO_SIGNAL else signal.Signals(said[0]).name


def _leave_to_the_pipe(_number: int, _frame: object) -> None:
    """Do nothing, in place of the default handler, which ends the interpreter."""


def limit_descriptors(most: int) -> None:
    """Let this process have at most `most` descriptors, for good.

    The process gives CAP_SYS_RESOURCE up, with which a device would raise the limit again. Call it
    before other threads run, as they would keep the capability.

    A process that may not raise its hard limit keeps that, with a warning.

    Raises:
        InvalidArgumentError: DESCRIPTOR_LIMIT: below LEAST_DESCRIPTORS.
    """
    if most < LEAST_DESCRIPTORS:
        raise InvalidArgumentError(
            "DESCRIPTOR_LIMIT",
            f"a limit of {most} descriptors: a device needs {LEAST_DESCRIPTORS}",
            limit=most,
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _LOG.warning(
            "%d descriptors are more than this process may have; it works with %d. Raise the hard "
            "limit where it is started",
            most,
            hard,
        )
    give_up(CAP_SYS_RESOURCE)


def open_socket(path: Path | None, fd: int | None, group_id: int | None) -> ListeningSocket:
    """Make the socket at a path, or take the one that was handed in.

    Raises:
        InvalidArgumentError: SOCKET_PATH, SOCKET_FD; SOCKET_MISSING: neither or both were given.
    """
    if path is not None and fd is None:
        return ListeningSocket.at(path.absolute(), group_id)
    if fd is not None and path is None:
        return ListeningSocket.inherited(fd)
    raise InvalidArgumentError(
        "SOCKET_MISSING", "a device needs either the path of its socket or a descriptor of one"
    )


def serve(spec: StandaloneDevice, sock: ListeningSocket, ready: Callable[[], None]) -> None:
    """Serve until the front-end has gone, or SIGTERM or SIGINT comes. Call it on the main thread.

    Args:
        spec: The device to serve.
        sock: The socket to serve it on; closed in any case.
        ready: Called once front-ends can connect.

    Raises:
        PortholeError: The device cannot be made, or a port not be forwarded.
        FailedPreconditionError: RINGS_NEVER_SERVED: the front-end has gone without.
    """
    ending = _Ending()
    peer_writes.allow_interrupts()
    try:
        entry = _start(spec, sock, ending.begin)
    except BaseException:
        sock.close()
        raise
    try:
        if isinstance(spec.backend, FsBackend):
            _LOG.info("the native fast path is %s", fastpath.status)
        how = entry.access
        _LOG.log(how.log_level, "guest memory, once attached: %s%s", how, how.warning)
        for wanted in spec.ports:
            mapping = entry.ports().map(wanted)
            _LOG.info("%s is forwarded to port %d of the guest", mapping.key, mapping.guest_port)
        ready()
        _LOG.info("ending: %s", ending.wait())
    finally:
        entry.mark_shutting_down()
        entry.tear_down()
    if entry.never_served is not None and not spec.persistent:
        raise entry.never_served


def _start(
    spec: StandaloneDevice, sock: ListeningSocket, end: Callable[[str], None]
) -> HostedDevice:
    last = DeviceState.LISTENING

    def changed(info: DeviceInfo, why: str) -> None:
        nonlocal last
        if info.state is last:  # such as a link that comes up; the device has logged it
            return
        _LOG.info("%s: %s", info.state, why)
        last = info.state
        if info.state is DeviceState.LISTENING and not spec.persistent:
            end(why)

    options = _parse(spec)
    access = spec.access.with_rings(options.rings)
    entry = HostedDevice(
        Identity(
            vm_id=VM_ID,
            instance_id=sock.path.stem,
            device_class=DEVICE_TYPES[type(spec.backend)].device_class,
            tag=options.name,
            options=spec.options,
            socket_path=sock.path,
        ),
        access,
        is_known=lambda: True,
        emit=lambda _: None,
        on_change=changed,
        on_exhausted=lambda *_: None,
    )
    entry.start(
        partial(make_device, options, spec.backend),
        table=RegionTable(OwnRisk()),
        sock=sock,
        offers_config=spec.offers_config,
    )
    return entry


def _parse(spec: StandaloneDevice) -> DeviceOptions:
    text = build_options(spec.name, spec.options, None, VM_ID)
    options: DeviceOptions = DEVICE_TYPES[type(spec.backend)].parse_options(text)
    return options

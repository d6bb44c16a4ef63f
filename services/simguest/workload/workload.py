"""The work that a test or a demonstration makes the guest do, through its virtio drivers.

Owns the drivers, by tag, and the rule that either the guest's own driver or a mount point uses a
share's device, never both. Every method blocks and may be called from any thread; every refusal is
a PortholeError. Must not know gRPC, vhost-user or rings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
)
from services.simguest.fs.bridge import FuseBridge
from services.simguest.fs.driver import FsDriver
from services.simguest.fs.operations import FsOperations
from services.simguest.fs.paths import ShareFiles, split
from services.simguest.net.driver import NetDriver
from services.simguest.net.tap import TapAdapter
from services.simguest.workload import names, network
from services.simguest.workload.copy import CopyResult, copy_tree
from services.simguest.workload.hash import FileDigest, hash_tree
from services.simguest.workload.service import HttpService

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import TypeVar

    from services.simguest.net.namespace import NetworkNamespace
    from services.simguest.virtio.interface import ProbedDevice, ReportingDevice
    from services.simguest.workload.network import HttpResult, PingResult

    T = TypeVar("T")

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Share:
    device: ProbedDevice
    driver: FsDriver
    files: ShareFiles
    bridge: FuseBridge | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Workload:
    """The guest's drivers, and the work that they can do."""

    def __init__(self, no_network: PortholeError | None = None) -> None:
        """Make one without devices.

        Args:
            no_network: Why this process may not make a network namespace; None: it may try.
        """
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}
        self._adapters: dict[str, TapAdapter | NetDriver] = {}
        self._namespace: NetworkNamespace | None = None
        self._no_namespace = no_network
        self._name_servers: tuple[str, ...] = ()
        self._has_given_tables = False

    # Devices come and go.

    def attach_share(self, tag: str, device: ProbedDevice) -> None:
        """Take over a virtio-fs device; its FUSE session runs when this returns.

        Args:
            tag: The name of the share in the other methods.
            device: Probed with `fs.driver.WANTED_FEATURES`; the caller closes it, after `detach`.

        Raises:
            AlreadyExistsError: TAG_TAKEN.
            PortholeError: An error of `FsDriver`; SHARE_IO, when the device refuses the session.
        """
        with self._lock:
            self._check_free(tag)
            driver = FsDriver(device)
            with _refusing(tag):
                driver.start()
            self._shares[tag] = _Share(device, driver, ShareFiles(FsOperations(driver)))

    def attach_adapter(
        self,
        tag: str,
        device: ReportingDevice,
        client_address: str = "",
        gateway_address: str = "",
        client_address_ipv6: str = "",
        name_servers: tuple[str, ...] = (),
    ) -> None:
        """Take over a virtio-net device and make it an interface of the guest's network namespace.

        If the process may not make a namespace, `adapter` still returns the adapter, and
        `in_network`, `http_get` and `ping` are refused.

        Args:
            tag: Name of the interface, 1 to 15 bytes.
            device: Probed with `net.driver.WANTED_FEATURES`; the caller closes it, after `detach`.
            client_address: "192.0.2.2/24"; empty for none.
            gateway_address: Next hop of the default route; empty for none.
            client_address_ipv6: A second address, for instance "fd00::2/64"; empty for none.
            name_servers: They are asked for names, as long as no other adapter brings any.

        Raises:
            AlreadyExistsError: TAG_TAKEN.
            PortholeError: An error of `TapAdapter`.
        """
        with self._lock:
            self._check_free(tag)
            namespace = self._open_namespace()
            if namespace is None:
                self._adapters[tag] = NetDriver(device)
            else:
                self._adapters[tag] = TapAdapter(
                    device, namespace, tag, client_address, gateway_address, client_address_ipv6
                )
            self._name_servers = name_servers or self._name_servers

    def detach(self, tag: str) -> None:
        """Let go of a device: unmount it, or remove its interface.

        Raises:
            NotFoundError: TAG_UNKNOWN.
        """
        with self._lock:
            share, adapter = self._shares.pop(tag, None), self._adapters.pop(tag, None)
        if share is not None:
            _stop_share(tag, share)
        elif isinstance(adapter, TapAdapter):
            adapter.close()
        elif adapter is None:
            raise _unknown(tag, "device", [*self._shares, *self._adapters])

    def close(self) -> None:
        """Let go of every device and of the network namespace."""
        with contextlib.ExitStack() as steps:  # takes all steps, even when one fails
            if self._namespace is not None:
                steps.callback(self._namespace.close)
            for tag in [*self._shares, *self._adapters]:
                steps.callback(self.detach, tag)

    # Shares.

    def files(self, tag: str) -> ShareFiles:
        """Return the files of a share, by path.

        Raises:
            NotFoundError: TAG_UNKNOWN.
            FailedPreconditionError: SHARE_MOUNTED.
        """
        share = self._share(tag)
        bridge = share.bridge
        if bridge is not None:
            raise FailedPreconditionError(
                "SHARE_MOUNTED",
                f"share {tag} is mounted at {bridge.mount_point}, and the host's kernel uses its "
                "device; unmount it first",
                tag=tag,
                mount_point=str(bridge.mount_point),
            )
        return share.files

    def mount(self, tag: str, mount_point: str | Path) -> None:
        """Mount a share in the host's file system; the guest's own driver pauses.

        Args:
            tag: The share.
            mount_point: An existing directory, as an absolute path.

        Raises:
            NotFoundError: TAG_UNKNOWN.
            InvalidArgumentError: MOUNT_POINT.
            FailedPreconditionError: SHARE_MOUNTED, FUSE_UNAVAILABLE or FUSE_REFUSED; the guest's
                own driver then goes on.
        """
        place = Path(mount_point)
        if not place.is_absolute():
            raise InvalidArgumentError(
                "MOUNT_POINT", f"mount point {str(mount_point)!r} must be an absolute path"
            )
        share = self._share(tag)
        with share.lock:
            self.files(tag)
            with _refusing(tag):
                share.driver.stop()
                try:
                    share.bridge = FuseBridge(share.device, place)
                except BaseException:
                    share.driver.start()
                    raise

    def unmount(self, tag: str) -> None:
        """Undo `mount`; the guest's own driver goes on.

        Raises:
            NotFoundError: TAG_UNKNOWN.
            FailedPreconditionError: SHARE_NOT_MOUNTED.
            PortholeError: The device is gone; the share is unmounted nevertheless.
        """
        share = self._share(tag)
        with share.lock:
            if share.bridge is None:
                raise FailedPreconditionError(
                    "SHARE_NOT_MOUNTED", f"share {tag} is not mounted", tag=tag
                )
            share.bridge.close()
            share.bridge = None
            with _refusing(tag):
                share.driver.start()

    def hash_tree(
        self, tag: str, path: str = "", exclude: Iterable[str] = ()
    ) -> Generator[FileDigest, None, None]:
        """Hash every regular file under a directory of a share, in no particular order.

        Args:
            tag: The share.
            path: Directory in it; empty for its root.
            exclude: Names directly in that directory that are not hashed.

        Raises:
            NotFoundError: TAG_UNKNOWN or SHARE_PATH.
            FailedPreconditionError: SHARE_MOUNTED; or SHARE_IO, with errno and path.
            PortholeError: The device is gone.
        """
        files = self.files(tag)
        with _refusing(tag):
            yield from hash_tree(files, path, {name.encode() for name in exclude})

    def copy_tree(
        self,
        source_tag: str,
        source_path: str,
        target_tag: str,
        target_path: str,
        exclude: Iterable[str] = (),
    ) -> CopyResult:
        """Copy directories, files, symbolic and hard links, with modes and times, between shares.

        Args:
            source_tag: Share to read.
            source_path: Directory in it; empty for its root.
            target_tag: Share to write.
            target_path: Directory in it, not inside the source; made if it is missing.
            exclude: Names directly in the source directory that are not copied.

        Raises:
            InvalidArgumentError: COPY_INTO_ITSELF.
            PortholeError: An error of `hash_tree`; a partial copy stays.
        """
        source, target = self.files(source_tag), self.files(target_tag)
        with _refusing(f"{source_tag} to {target_tag}"):
            above, below = split(source_path), split(target_path)
            if source_tag == target_tag and below[: len(above)] == above:
                raise InvalidArgumentError(
                    "COPY_INTO_ITSELF",
                    f"share {source_tag}: {target_path!r} lies inside {source_path!r}; copy to a "
                    "place outside",
                    tag=source_tag,
                )
            names = {name.encode() for name in exclude}
            return copy_tree(source, source_path, target, target_path, names)

    # The network.

    def adapter(self, tag: str) -> TapAdapter | NetDriver:
        """Return an adapter: a TapAdapter in the guest's namespace, or a NetDriver without one.

        Raises:
            NotFoundError: TAG_UNKNOWN.
        """
        try:
            return self._adapters[tag]
        except KeyError:
            raise _unknown(tag, "adapter", self._adapters) from None

    def in_network(self, function: Callable[[], T]) -> T:
        """Run a function inside the guest's network namespace, in a new thread.

        Raises:
            FailedPreconditionError: NETNS_UNAVAILABLE, which names the missing right; or
                NO_ADAPTER, before the first adapter is attached.
            Exception: Any exception of the function.
        """
        namespace = self._namespace
        if namespace is None:
            raise self._no_namespace or FailedPreconditionError(
                "NO_ADAPTER", "the guest has no network adapter; attach one first"
            )
        return namespace.run(function)

    def network_tables(self) -> list[int]:
        """Open /proc/net/tcp and tcp6 of the guest's network; they are the caller's.

        Returns:
            Descriptors, from which every process reads the guest's; none without a network, and
            from the second call on.
        """
        if self._namespace is None or self._has_given_tables:
            return []
        self._has_given_tables = True
        return self._namespace.run(
            # Not /proc/net: that is the one of the process's first thread.
            lambda: [
                os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
                for name in ("tcp", "tcp6")
            ]
        )

    def http_get(self, url: str, timeout_s: float = 0.0) -> HttpResult:
        """Fetch a URL from inside the guest's network; see `network.http_get`."""
        return self.in_network(lambda: network.http_get(url, timeout_s, self._name_servers))

    def resolve(self, name: str, timeout_s: float = 0.0) -> list[str]:
        """Ask for a name from inside the guest's network; see `names.resolve`."""
        return self.in_network(lambda: names.resolve(name, self._name_servers, timeout_s))

    def serve(self, address: str, port: int, body: bytes) -> HttpService:
        """Answer HTTP requests inside the guest's network; see `HttpService`."""
        return self.in_network(lambda: HttpService(address, port, body))

    def ping(self, address: str, count: int = 1, timeout_s: float = 0.0) -> PingResult:
        """Ping from inside the guest's network; see `network.ping`."""
        return self.in_network(lambda: network.ping(address, count, timeout_s))

    def _share(self, tag: str) -> _Share:
        try:
            return self._shares[tag]
        except KeyError:
            raise _unknown(tag, "share", self._shares) from None

    def _check_free(self, tag: str) -> None:
        if tag in self._shares or tag in self._adapters:
            raise AlreadyExistsError("TAG_TAKEN", f"a device {tag!r} is attached already", tag=tag)

    def _open_namespace(self) -> NetworkNamespace | None:
        # It brings pyroute2 with it, half of the time in which a guest starts.
        from services.simguest.net.namespace import NetworkNamespace

        if self._namespace is None and self._no_namespace is None:
            try:
                self._namespace = NetworkNamespace()
            except PortholeError as error:
                self._no_namespace = error
                _LOG.warning("adapters work through the Python API only: %s", error)
        return self._namespace


def _stop_share(tag: str, share: _Share) -> None:
    with share.lock:
        try:
            if share.bridge is not None:
                share.bridge.close()
                share.bridge = None
            share.driver.stop()
        except (OSError, PortholeError) as error:
            _LOG.info("share %s ends without DESTROY: %s", tag, error)


@contextmanager
def _refusing(tag: str) -> Iterator[None]:
    """Turn an OSError of a device into a refusal that names share and path."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            "SHARE_PATH", f"share {tag}: {error.filename}: {error.strerror}", tag=tag
        ) from error
    except OSError as error:
        raise FailedPreconditionError(
            "SHARE_IO",
            f"share {tag}: {error.filename}: {error.strerror}",
            tag=tag,
            errno=error.errno or 0,
        ) from error


def _unknown(tag: str, what: str, known: Iterable[str]) -> NotFoundError:
    names = ", ".join(sorted(known)) or "none"
    return NotFoundError(
        "TAG_UNKNOWN", f"no {what} {tag!r} is attached; there are: {names}", tag=tag
    )

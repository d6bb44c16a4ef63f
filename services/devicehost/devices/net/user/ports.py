"""Ports of the host that passt forwards to a guest: the table, and its changes at run time.

Owns the rules of a mapping, and running pesto, which changes passt's table. passt does not answer
whether it could listen: pesto has ended when the change is on its way, a second one is greeted only
after passt has carried it out, and then the host's ports are looked at. Every change makes passt
listen anew on all ports, so all are looked at. Must not know how passt is started.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.net.user.installation import PACKAGE, PORTS_NEED
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.handshake.ports import (
    DEFAULT_LISTEN_ADDRESS,
    PortKey,
    PortMapping,
    PortProtocol,
    PortState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.devices.net.user.installation import Installation

MAX_PORTS: Final = 128
"""Mappings of one adapter; passt has room for 255 rules."""
MAX_PORT: Final = 65535

_PESTO_S: Final = 5.0
"""How long passt may take for a change; it does not answer while its guest takes no frames."""
_FREE_PORT_TRIES: Final = 4
_FIRST_ORDINARY_PORT: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Ports:
    """The mappings of one adapter. Every method may be called from any thread, and blocks.

    passt keeps no mapping when it ends: `attached` gives all of them to the next one.
    """

    def __init__(
        self, installation: Installation, name: str, restart: Callable[[str], None]
    ) -> None:
        """Make an empty table.

        Args:
            installation: The passt whose table it is.
            name: Of the adapter, for errors.
            restart: Starts passt again, and says why: its table is in doubt, and the next one gets
                it from here. It does not wait.
        """
        self._installation = installation
        self._name = name
        self._restart = restart
        self._control: int | None = None
        self._mappings: dict[PortKey, PortMapping] = {}
        self._changing = threading.Lock()
        """Held while pesto runs, _PESTO_S at most for each run."""

    def attached(self, control: int | None) -> None:
        """Give the mappings to a passt that has none; those that it cannot have become lost.

        Args:
            control: An O_PATH descriptor of its control socket, which stays the caller's.
        """
        with self._changing:
            self._control = control
            for mapping in list(self._mappings.values()):
                try:
                    self._add(replace(mapping, state=PortState.LISTENING, reason="", detail=""))
                except PortholeError as error:
                    self._lose(mapping, error)

    def detached(self) -> None:
        """Know that there is no passt now; its control socket is not used after this."""
        with self._changing:
            self._control = None

    def map(self, mapping: PortMapping) -> PortMapping:
        """Forward a port; the host listens when this returns, and nothing has changed if it raises.

        Returns:
            The mapping, with the port that was chosen.

        Raises:
            InvalidArgumentError: PORT_PROTOCOL, PORT_ADDRESS, PORT_NUMBER.
            AlreadyExistsError: PORT_EXISTS.
            PermissionDeniedError: PORT_NOT_PERMITTED.
            FailedPreconditionError: PORT_IN_USE, PORT_ADDRESS_UNAVAILABLE, PORT_REFUSED, or
                PORT_FORWARD_UNSUPPORTED.
            ResourceExhaustedError: PORTS_EXHAUSTED.
            UnavailableError: USER_NETWORK_DOWN.
        """
        key = _checked(mapping.key, least=0)
        _check_number("guest port", mapping.guest_port, least=1)
        with self._changing:
            for tries in range(_FREE_PORT_TRIES, 0, -1):
                chosen = key if key.port else replace(key, port=_free_port(key))
                try:
                    return self._map(PortMapping(chosen, mapping.guest_port))
                except (AlreadyExistsError, FailedPreconditionError) as error:
                    # Another process was quicker on a port that was free.
                    taken = error.reason in ("PORT_IN_USE", "PORT_EXISTS")
                    if key.port or not taken or tries == 1:
                        raise
            raise AssertionError  # the last try returns or raises

    def unmap(self, key: PortKey) -> None:
        """End a mapping; the host no longer listens when this returns.

        Raises:
            InvalidArgumentError: PORT_PROTOCOL, PORT_ADDRESS, PORT_NUMBER.
            NotFoundError: PORT_UNKNOWN.
            FailedPreconditionError: PORT_REFUSED.
            UnavailableError: USER_NETWORK_DOWN: passt does not answer.
        """
        key = _checked(key, least=1)
        with self._changing:
            mapping = self._mappings.get(key)
            if mapping is None:
                raise NotFoundError(
                    "PORT_UNKNOWN", f"adapter {self._name} has no mapping of {key}", key=str(key)
                )
            if mapping.state is PortState.LISTENING and self._control is not None:
                self._change("--delete", mapping)
            del self._mappings[key]
            self._look_at_all()

    def list(self) -> tuple[PortMapping, ...]:
        """Return all mappings, in the order in which they were made."""
        return tuple(self._mappings.values())

    def _map(self, mapping: PortMapping) -> PortMapping:
        key = mapping.key
        if self._installation.pesto is None:
            raise FailedPreconditionError(
                "PORT_FORWARD_UNSUPPORTED",
                f"{self._installation.passt} cannot change its ports at run time: install Debian's "
                f"package {PORTS_NEED}, with pesto beside it",
                program=self._installation.passt,
            )
        if key in self._mappings:
            raise AlreadyExistsError(
                "PORT_EXISTS", f"adapter {self._name} has a mapping of {key}", key=str(key)
            )
        if len(self._mappings) >= MAX_PORTS:
            raise ResourceExhaustedError(
                "PORTS_EXHAUSTED",
                f"adapter {self._name} has {MAX_PORTS} mappings of ports, the most that it may "
                "have; unmap one",
                used=len(self._mappings),
                total=MAX_PORTS,
            )
        self._add(mapping)
        self._look_at_all()
        return self._mappings[key]

    def _add(self, mapping: PortMapping) -> None:
        """Make passt listen; it does not, and has no rule for it, if this raises."""
        key = mapping.key
        _check_free(key)
        self._change("--add", mapping)
        if _is_free(key):
            self._change("--delete", mapping)
            raise FailedPreconditionError(
                "PORT_REFUSED", f"passt does not listen on {key}; its log says why", key=str(key)
            )
        self._mappings[key] = mapping

    def _change(self, how: str, mapping: PortMapping) -> None:
        """Change a rule, and wait until passt has carried it out."""
        self._pesto(how, *_rule(mapping))
        try:
            self._pesto()
        except UnavailableError as error:
            self._restart(f"a change of its ports is in doubt: {error.message}")
            raise

    def _look_at_all(self) -> None:
        """Find the mappings on which passt does not listen any more, and take their rules back."""
        if self._control is None:
            return
        for mapping in list(self._mappings.values()):
            if mapping.state is PortState.LISTENING and _is_free(mapping.key):
                try:
                    self._change("--delete", mapping)
                except PortholeError:
                    return  # it has ended: the next one gets all mappings anew
                self._lose(
                    mapping,
                    FailedPreconditionError(
                        "PORT_REFUSED", f"passt does not listen on {mapping.key} any more"
                    ),
                )

    def _lose(self, mapping: PortMapping, error: PortholeError) -> None:
        self._mappings[mapping.key] = replace(
            mapping, state=PortState.LOST, reason=error.reason, detail=error.message
        )

    def _pesto(self, *arguments: str) -> None:
        """Run pesto; without arguments it asks passt for its table, which it answers in its turn.

        Raises:
            FailedPreconditionError: PORT_REFUSED.
            UnavailableError: USER_NETWORK_DOWN.
        """
        control = self._control
        if control is None or self._installation.pesto is None:
            raise self._down("passt is being started again")
        try:
            done = subprocess.run(
                [self._installation.pesto, *arguments, f"/proc/self/fd/{control}"],
                capture_output=True,
                check=False,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                pass_fds=[control],
                env={},
                cwd="/",
                timeout=_PESTO_S,
            )
        except subprocess.TimeoutExpired:
            raise self._down(
                f"passt has not answered for {_PESTO_S:.0f} s; it waits for its guest to take "
                "frames, or is stopped"
            ) from None
        except OSError as error:
            raise self._down(f"{self._installation.pesto} cannot be run: {error}") from error
        if done.returncode:
            said = " ".join(done.stderr.split())[-400:]
            raise FailedPreconditionError(
                "PORT_REFUSED", f"adapter {self._name}: {PACKAGE} refuses: {said}"
            )

    def _down(self, why: str) -> UnavailableError:
        return UnavailableError(
            "USER_NETWORK_DOWN", f"adapter {self._name}: {why}; repeat the call"
        )


def _rule(mapping: PortMapping) -> tuple[str, str]:
    """Return a rule of pesto: its option, and "ADDRESS/PORT:GUEST_PORT"."""
    key = mapping.key
    option = "--tcp-ports" if key.protocol is PortProtocol.TCP else "--udp-ports"
    return option, f"{key.address}/{key.port}:{mapping.guest_port}"


def _checked(key: PortKey, *, least: int) -> PortKey:
    """Return a key with its address in the one spelling that is compared."""
    if key.protocol is PortProtocol.UNSPECIFIED:
        raise InvalidArgumentError("PORT_PROTOCOL", "a port's protocol is neither TCP nor UDP")
    _check_number("port of the host", key.port, least=least)
    try:
        address = ipaddress.ip_address(key.address or DEFAULT_LISTEN_ADDRESS)
    except ValueError:
        address = None
    if address is None or "%" in str(address) or address.is_multicast:
        raise InvalidArgumentError(
            "PORT_ADDRESS",
            f"{key.address!r} is no address to listen on: give an IPv4 or IPv6 address of this "
            "host, or 0.0.0.0 or :: for all",
            address=key.address,
        )
    return replace(key, address=str(address))


def _check_number(what: str, number: int, *, least: int) -> None:
    if not least <= number <= MAX_PORT:
        raise InvalidArgumentError(
            "PORT_NUMBER", f"{what} {number} must be {least} to {MAX_PORT}", port=number
        )


def _free_port(key: PortKey) -> int:
    """Return a port that no process uses now.

    Raises:
        FailedPreconditionError: PORT_ADDRESS_UNAVAILABLE.
    """
    with _bound(key) as bound:
        return int(bound.getsockname()[1])


def _check_free(key: PortKey) -> None:
    """Check that passt, which has no rights, can listen.

    Raises:
        FailedPreconditionError: PORT_IN_USE, PORT_ADDRESS_UNAVAILABLE.
        PermissionDeniedError: PORT_NOT_PERMITTED.
    """
    first = _first_ordinary_port()
    if key.port < first:
        raise PermissionDeniedError(
            "PORT_NOT_PERMITTED",
            f"{key}: passt has no rights, and ports below {first} need one; choose another, or "
            "lower net.ipv4.ip_unprivileged_port_start",
            key=str(key),
            bound=first,
        )
    _bound(key).close()


def _is_free(key: PortKey) -> bool:
    try:
        _bound(key).close()
    except FailedPreconditionError as error:
        return error.reason != "PORT_IN_USE"
    return True


def _bound(key: PortKey) -> socket.socket:
    family = socket.AF_INET6 if ":" in key.address else socket.AF_INET
    is_tcp = key.protocol is PortProtocol.TCP
    made = socket.socket(family, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM)
    try:
        if is_tcp:
            # Connections that have ended do not count, only a socket that listens.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((key.address, key.port))
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise FailedPreconditionError(
                "PORT_IN_USE",
                f"{key}: another socket of this host has it; choose another port, or 0 for any",
                key=str(key),
            ) from error
        raise FailedPreconditionError(
            "PORT_ADDRESS_UNAVAILABLE",
            f"{key}: this host cannot listen there: {os.strerror(error.errno or 0)}",
            key=str(key),
        ) from error
    return made


def _first_ordinary_port() -> int:
    try:
        return int(_FIRST_ORDINARY_PORT.read_text())
    except (OSError, ValueError):  # not Linux's /proc
        return 1024

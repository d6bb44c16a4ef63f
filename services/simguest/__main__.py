"""`python -m services.simguest`: one user-space guest, which a VM owner boots over gRPC."""

from __future__ import annotations

import asyncio
import os

from services.handshake.errors import FailedPreconditionError, PortholeError
from services.rpc import tracing, user_namespace
from services.rpc.server import serve
from services.rpc.settings import load
from services.rpc.tether import tie_to_parent
from services.rpc.user_namespace import CAP_NET_ADMIN, CAP_SYS_ADMIN, has_capabilities
from services.simguest import telemetry
from services.simguest.guest import Guest, GuestPlace
from services.simguest.servicer import servicers
from services.simguest.settings import GuestSettings

_TELEMETRY = ("trace_file", "metrics_file", "otlp_endpoint", "log_level")


def _telemetry_flags(settings: GuestSettings) -> tuple[str, ...]:
    """Return the flags for guest init of the settings that it shares with this process."""
    values = ((field, getattr(settings, field)) for field in _TELEMETRY)
    flags = [f"--{field.replace('_', '-')}={value}" for field, value in values if value is not None]
    return (*flags, "--trace-console") if settings.trace_console else tuple(flags)


def _have_network_rights() -> PortholeError | None:
    """Get the rights for a network namespace, if need be in a user namespace; None: they are there.

    It has to come before any thread.
    """
    if has_capabilities(CAP_SYS_ADMIN, CAP_NET_ADMIN):
        return None
    try:
        user_namespace.enter()
    except FailedPreconditionError as error:
        return FailedPreconditionError(
            "NETNS_UNAVAILABLE", f"a network namespace for the guest: {error.message}"
        )
    return None


async def _run(settings: GuestSettings, no_network: PortholeError | None) -> None:
    place = GuestPlace(
        directory=settings.guest_dir,
        rings_in_pool=settings.rings == "inside",
        telemetry=_telemetry_flags(settings),
    )
    guest = Guest(place, no_network)
    tracing.setup(settings.name, settings)
    telemetry.observe(guest)
    try:
        await serve(
            settings,
            name=settings.name,
            servicers=servicers(guest),
            on_shutdown=guest.power_off,
        )
    finally:
        # Both processes have exported what they had at the same time.
        await guest.init_ended()


def main() -> None:
    """Run the guest until SIGTERM, which powers it off."""
    settings = load(GuestSettings)
    no_network = _have_network_rights()
    if settings.exit_with_parent:
        tie_to_parent(os.getppid())
    asyncio.run(_run(settings, no_network))


if __name__ == "__main__":
    main()

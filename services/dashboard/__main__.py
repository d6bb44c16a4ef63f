"""`python -m services.dashboard`: the process of the dashboard.

Owns its settings, its signals and its exit code.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from services.dashboard.dashboard import Dashboard, Plan, http_url
from services.dashboard.settings import DashboardSettings
from services.dashboard.store import Limits
from services.handshake.errors import PortholeError
from services.rpc.settings import load


async def run(settings: DashboardSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SystemExit: 1, with one line on stderr, when it cannot start.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        plan = Plan(
            database=settings.database.absolute(),
            limits=Limits(int(settings.keep_days * 86_400_000), settings.keep_mib << 20),
            settle_s=settings.settle_s,
            token=settings.token(),
            listen=settings.listen,
            otlp_grpc=settings.otlp_grpc,
            otlp_http=settings.otlp_http,
            links=settings.links,
            files=settings.load,
        )
        async with Dashboard(plan) as dashboard:
            addresses = (
                *map(http_url, dashboard.page_addresses),
                *dashboard.grpc_addresses,
                *map(http_url, dashboard.http_addresses),
            )
            print(f"porthole {settings.name} ready on {', '.join(addresses)}", flush=True)
            await stopping.wait()
    except (PortholeError, OSError, ValueError) as error:
        raise SystemExit(f"porthole {settings.name}: {error}") from None


def main() -> None:
    """Read settings and serve."""
    settings = load(DashboardSettings)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format=f"%(asctime)s {settings.name} %(levelname)s %(name)s: %(message)s",
    )
    # A line for each request or connection would be a stranger's to write.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()

"""`porthole up`, `health` and `version`: the services themselves."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli import context
from services.cli.arguments import JsonFlag, check_address
from services.cli.clients import health
from services.cli.console import out, print_json, say
from services.cli.exit_codes import NEGATIVE
from services.cli.launcher import Services, service_ended
from services.cli.records import VersionRecord, as_json
from services.handshake.errors import PortholeError
from services.rpc.version import API_VERSIONS, SOFTWARE_VERSION

if TYPE_CHECKING:
    from services.cli.context import CliContext

_HEALTH_DEADLINE_S: Final = 3.0

_USE: Final = """\
porthole is up in {run_dir}; Ctrl-C ends it. In another terminal:

  export PORTHOLE_RUN_DIR={run_dir}
  porthole vm create                      # prints the VM's id
  porthole share add VM DIRECTORY --ro
  porthole vm show VM

Programs reach the VM owner at {owner} (gRPC, with reflection).
"""


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the root."""
    app.command()(up)
    app.command("health")(health_)
    app.command()(version)


def up(ctx: typer.Context) -> None:
    """Run the services on this machine until Ctrl-C.

    SIGTERM does the same: both end them in order. The VM owner starts a guest per VM, and each
    guest starts its guest init.
    """
    asyncio.run(_serve(context.of(ctx)))


def health_(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="unix:/path or host:port.")],
) -> None:
    """Ask a service whether it is serving."""
    context.of(ctx)
    answer = asyncio.run(health(check_address(address), _HEALTH_DEADLINE_S))
    out().print(answer, markup=False)
    if answer != "SERVING":
        raise typer.Exit(NEGATIVE)


def version(ctx: typer.Context, json: JsonFlag = False) -> None:
    """Tell the versions of this command and of a VM owner."""
    settings = context.of(ctx)

    async def run() -> VersionRecord:
        async with settings.owner() as client:
            return await client.version()

    owner, lack = None, ""
    try:
        owner = asyncio.run(run())
    except PortholeError as error:
        lack = error.message
    if json:
        services = {"vm_owner": as_json(owner)} if owner else {}
        own = {"porthole": SOFTWARE_VERSION, "api_versions": list(API_VERSIONS)}
        print_json({**own, "services": services})
        return
    out().print(f"porthole {SOFTWARE_VERSION}, API {', '.join(API_VERSIONS)}", markup=False)
    if owner is None:
        say(f"VM owner: {lack}")
        return
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in owner.manifest.items())
    out().print(f"VM owner {owner.software_version}: {facts}", markup=False)


async def _serve(settings: CliContext) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        # A second signal must not interrupt the ending of the services.
        if task is not None and not stopping:
            stopping = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    run_dir, trace_file = settings.settings.run_dir.absolute(), settings.settings.trace_file
    environment = {"PORTHOLE_TRACE_FILE": str(trace_file.absolute())} if trace_file else {}
    try:
        async with Services(run_dir, environment, _log) as services:
            out().print(_USE.format(run_dir=run_dir, owner=services.owner_address), markup=False)
            raise service_ended(await services.first_to_end())
    except asyncio.CancelledError:
        if not stopping:
            raise
        say("porthole up: all services have ended")


def _log(service: str, line: str) -> None:
    say(f"{service}: {line}")

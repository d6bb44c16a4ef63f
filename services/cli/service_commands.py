"""`porthole up`, `health` and `version`: the services themselves."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli import context
from services.cli.arguments import JsonFlag, check_address
from services.cli.clients import health
from services.cli.console import out, print_json, printable, say
from services.cli.exit_codes import NEGATIVE
from services.cli.launcher import Services, service_ended
from services.cli.records import VersionRecord, as_json
from services.devicehost import fastpath
from services.handshake.errors import PortholeError
from services.rpc.version import API_VERSIONS, SOFTWARE_VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable

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
    settings = context.of(ctx)
    answer = asyncio.run(health(check_address(address), settings.wait_s, _HEALTH_DEADLINE_S))
    out().print(answer, markup=False)
    if answer != "SERVING":
        raise typer.Exit(NEGATIVE)


def version(ctx: typer.Context, json: JsonFlag = False) -> None:
    """Tell the versions of this command, of a VM owner and of the run directory's device host.

    And whether the native fast path serves virtio-fs: `porthole device fs` has this command's.
    """
    settings = context.of(ctx)

    async def owner_version() -> VersionRecord:
        async with settings.owner() as client:
            return await client.version()

    async def run() -> dict[str, VersionRecord | PortholeError]:
        owner, device_host = await asyncio.gather(
            _or_error(owner_version()), _or_error(settings.device_host_version())
        )
        return {"VM owner": owner, "device host": device_host}

    answers = asyncio.run(run())
    if json:
        own = {
            "porthole": SOFTWARE_VERSION,
            "api_versions": list(API_VERSIONS),
            "native_fast_path": fastpath.status,
        }
        services = {
            name.lower().replace(" ", "_"): as_json(answer)
            for name, answer in answers.items()
            if isinstance(answer, VersionRecord)
        }
        print_json({**own, "services": services})
        return
    own_line = f"porthole {SOFTWARE_VERSION}, API {', '.join(API_VERSIONS)}"
    out().print(f"{own_line}, native fast path {fastpath.status}", markup=False)
    for name, answer in answers.items():
        if isinstance(answer, PortholeError):
            say(f"{name}: {answer.message}")
            continue
        facts = (f"{fact.replace('_', ' ')} {value}" for fact, value in answer.manifest.items())
        line = f"{name} {answer.software_version}: {', '.join(facts)}"
        out().print(printable(line), markup=False)


async def _or_error(asked: Awaitable[VersionRecord]) -> VersionRecord | PortholeError:
    try:
        return await asked
    except PortholeError as error:
        return error


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

"""`porthole up`: runs the services of one run directory until Ctrl-C."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli import context
from services.cli.arguments import check_listen_address
from services.cli.console import out, say
from services.cli.end_signals import end_signals
from services.cli.launcher import Services, service_ended

if TYPE_CHECKING:
    from services.cli.context import CliContext

_USE: Final = """\
porthole is up in {run_dir}; Ctrl-C ends it. In another terminal:

  export PORTHOLE_RUN_DIR={run_dir}
{sent}  porthole vm create                      # prints the VM's id
  porthole share add VM DIRECTORY --ro
  porthole vm show VM

Programs reach the VM owner at {addresses} (gRPC, with reflection).
{seen}"""

_SENT: Final = "  export PORTHOLE_OTLP_ENDPOINT={endpoint}\n"
_SEEN: Final = "Handshakes are seen at {page}/.\n"


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command()(up)


def up(
    ctx: typer.Context,
    listen: Annotated[
        str,
        typer.Option(
            help="Serve the VM owner there as well, at HOST:PORT on loopback; port 0: the kernel "
            "chooses one. Several with commas.",
            metavar="ADDRESS",
            envvar="PORTHOLE_LISTEN",
        ),
    ] = "",
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Show the handshakes on a page of their own.")
    ] = False,
) -> None:
    """Run the services on this machine until Ctrl-C.

    Ctrl-C, SIGTERM and the end of the terminal end them in order. The VM owner starts a guest per
    VM, and each guest starts its guest init. The dashboard has the flags of `porthole dashboard` as
    variables; it takes OTLP in the run directory, and elsewhere where they say so.
    """
    cli = context.of(ctx)
    if dashboard:
        cli.check_unsent()
    addresses = [check_listen_address(item.strip()) for item in listen.split(",") if item.strip()]
    asyncio.run(_serve(cli, addresses, dashboard=dashboard))


async def _serve(cli: CliContext, listen: list[str], *, dashboard: bool) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        # A second signal must not interrupt the ending of the services.
        if task is not None and not stopping:
            stopping = True
            task.cancel()

    for number in end_signals():
        loop.add_signal_handler(number, stop)
    run_dir, trace_file = cli.settings.run_dir.absolute(), cli.settings.trace_file
    environment = {"PORTHOLE_TRACE_FILE": str(trace_file.absolute())} if trace_file else {}
    try:
        async with Services(run_dir, environment, _log, listen, dashboard=dashboard) as services:
            use = _USE.format(
                run_dir=run_dir,
                addresses=" and ".join(services.addresses),
                sent=_SENT.format(endpoint=services.otlp_endpoint) if dashboard else "",
                seen=_SEEN.format(page=services.page) if dashboard else "",
            )
            out().print(use, markup=False, soft_wrap=True)
            raise service_ended(await services.first_to_end())
    except asyncio.CancelledError:
        if not stopping:
            raise
        say("porthole up: all services have ended")


def _log(service: str, line: str) -> None:
    say(f"{service}: {line}")

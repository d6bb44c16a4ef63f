"""`porthole session …`: plays the WSLC session for a VM."""

from __future__ import annotations

import asyncio

import typer

from services.cli import context
from services.cli.arguments import JsonFlag, VmArgument
from services.cli.console import out, print_json, say
from services.cli.documents import AppliedCapabilities, as_document
from services.session import apply_guest_capabilities

app = typer.Typer(help="Play the WSLC session.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="session")


@app.callback()
def group() -> None:
    """Play the WSLC session."""


@app.command()
def apply(ctx: typer.Context, vm: VmArgument, json: JsonFlag = False) -> None:
    """Pull a guest's capabilities from its guest init and apply them.

    It may be repeated.
    """
    cli = context.of(ctx)

    async def run() -> tuple[str, str, bool]:
        async with cli.owner() as client:
            vm_id = (await client.get_vm(vm)).vm_id
        answer = await apply_guest_capabilities(cli.owner_address, vm_id, wait_s=cli.wait_s)
        return vm_id, answer.swiotlb_option, answer.already_applied

    with cli.telemetry():
        vm_id, token, already_applied = asyncio.run(run())
    if json:
        print_json(as_document(AppliedCapabilities(vm_id, token, already_applied)))
        return
    if token:
        out().print(token, markup=False)
        say("had been applied before" if already_applied else "applied")
    else:
        say("the guest's kernel publishes no pool; the VM runs without one")

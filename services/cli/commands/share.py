"""`porthole share …`: add, remove, list and check shared directories."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli import context, tables
from services.cli.arguments import JsonFlag, VmArgument
from services.cli.clients import workload
from services.cli.console import out, print_json, say
from services.cli.documents import AddedShare, ShareList, as_document
from services.cli.requests import ShareRequest
from services.cli.views import ShareView

app = typer.Typer(help="Share directories of the host with a VM.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="share")


@app.command()
def add(
    ctx: typer.Context,
    vm: VmArgument,
    directory: Annotated[Path, typer.Argument(help="Directory on the device host's side.")],
    tag: Annotated[str, typer.Option(help="Mount tag; by default made from the id.")] = "",
    options: Annotated[
        str, typer.Option(help="Further options: 'key=value;flag', for instance 'uid=1000'.")
    ] = "",
    read_only: Annotated[bool, typer.Option("--read-only", "--ro", help="Refuse writing.")] = False,
    elevated: Annotated[bool, typer.Option("--elevated", help="Serve it elevated.")] = False,
    aggregate: Annotated[
        bool,
        typer.Option("--aggregate", help="Make it a directory of the VM's aggregate device."),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Share a directory; adding an equal share again returns the existing one."""
    cli = context.of(ctx)
    items = [item for item in options.split(";") if item]
    if read_only and "ro" not in items:
        items.insert(0, "ro")
    request = ShareRequest(str(directory.absolute()), tag, ";".join(items), elevated, aggregate)

    async def run() -> tuple[ShareView, bool]:
        async with cli.owner() as client:
            return await client.add_share(vm, request)

    with cli.telemetry():
        share, existed = asyncio.run(run())
    if json:
        added = AddedShare(**dataclasses.asdict(share), already_existed=existed)
        print_json(as_document(added))
        return
    out().print(share.share_id, markup=False)
    where = f"{share.tag}/{share.share_id}" if share.aggregate else share.tag
    say(f"{share.host_path} {'was already' if existed else 'is'} shared as {where}")


@app.command()
def remove(
    ctx: typer.Context,
    vm: VmArgument,
    share: Annotated[str, typer.Argument(help="Id or tag of the share.")],
) -> None:
    """Remove a share."""
    cli = context.of(ctx)

    async def run() -> str:
        async with cli.owner() as client:
            view = await client.get_vm(vm)
            ids = {item.tag: item.share_id for item in view.shares if not item.aggregate}
            # An unknown id is sent to the owner, which refuses it.
            share_id = ids.get(share, share)
            await client.remove_share(view.vm_id, share_id)
            return share_id

    with cli.telemetry():
        say(f"removed {asyncio.run(run())}")


@app.command("list")
def list_(ctx: typer.Context, vm: VmArgument, json: JsonFlag = False) -> None:
    """List the shares of a VM."""
    cli = context.of(ctx)

    async def run() -> tuple[ShareView, ...]:
        async with cli.owner() as client:
            return (await client.get_vm(vm)).shares

    shares = asyncio.run(run())
    if json:
        print_json(as_document(ShareList(shares)))
    elif shares:
        out().print(tables.share_table(shares))
    else:
        say(f"no shares; `porthole share add {vm} DIRECTORY` adds one")


@app.command("hash")
def hash_(
    ctx: typer.Context,
    vm: VmArgument,
    tag: Annotated[str, typer.Argument(help="Tag of the share.")],
    path: Annotated[str, typer.Argument(help="Directory in the share.")] = "",
) -> None:
    """Have the guest read every file of a share; print lines for `sha256sum --check`."""
    cli = context.of(ctx)

    async def run() -> None:
        async with cli.owner() as client:
            view = await client.get_vm(vm)
        async with workload(view.machine_address, cli.wait_s) as guest:
            async for name, digest in guest.hash_tree(tag, path):
                sys.stdout.buffer.write(checksum_line(name, digest.sha256))
        sys.stdout.buffer.flush()

    asyncio.run(run())


def checksum_line(name: bytes, sha256: str) -> bytes:
    """Return a line in the form of sha256sum, which escapes names that would break the line."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    mark = b"\\" if escaped != name else b""
    return mark + sha256.encode() + b"  " + escaped + b"\n"

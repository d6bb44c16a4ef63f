"""`porthole vm …`: create, list, show, terminate and watch VMs."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from services.cli import context, tables
from services.cli.arguments import (
    LIMIT,
    Isolation,
    JsonFlag,
    Kind,
    VmArgument,
    parse_limit,
    parse_share,
    parse_size,
    read_wslconfig,
)
from services.cli.console import out, print_json, printable, say
from services.cli.documents import AdapterLimits, StateEvent, VmList, as_document
from services.cli.requests import QemuRequest, VmRequest
from services.cli.views import VmView
from services.handshake.rate_limit import RateLimit, RateLimits

app = typer.Typer(help="Create, show and end VMs.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="vm")


QEMU = "qemu"
"""The machine that is a Linux guest in QEMU, in the place of an address."""


@app.command()
def create(
    ctx: typer.Context,
    kind: Annotated[
        Kind, typer.Option(help="wsl2: the guest pushes; wslc: a session applies.")
    ] = Kind.WSL2,
    ram: Annotated[
        str, typer.Option(help="Memory, 2G or 512M; by default that of .wslconfig, or 2G.")
    ] = "",
    kernel: Annotated[
        str,
        typer.Option(
            help="`uname -r` of the guest; by default the bundled kernel's. With --machine qemu: "
            "the file of its kernel."
        ),
    ] = "",
    publishes_pool: Annotated[
        bool | None,
        typer.Option(
            "--publishes-pool/--no-publishes-pool",
            help="Whether the kernel publishes its pool; by default its version decides. An older "
            "kernel that does is KERNEL_TOO_OLD to `handshake verify`.",
        ),
    ] = None,
    wslconfig: Annotated[
        Path | None, typer.Option(help="A .wslconfig file.", exists=True, dir_okay=False)
    ] = None,
    machine: Annotated[
        str,
        typer.Option(
            help="qemu: a real Linux guest. Or the address of a running machine; by default the "
            "owner starts a user-space guest."
        ),
    ] = "",
    initramfs: Annotated[
        str, typer.Option(help="With --machine qemu: the file of its initramfs.")
    ] = "",
    cpus: Annotated[
        int, typer.Option(help="With --machine qemu: virtual CPUs; by default 1.", min=0, max=64)
    ] = 0,
    isolation: Annotated[
        Isolation | None,
        typer.Option(
            help="With --machine qemu: what devices are handed of the guest's memory. shared-ram, "
            "the default: all of it, and they keep its pool; strict: a pool for each of 8 devices "
            "at most, and nothing else."
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="DIRECTORY[,tag=NAME][,OPTION…]; may be repeated."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Boot a VM."""
    cli = context.of(ctx)
    rest = QemuRequest(cpus=cpus, isolation=isolation or "")
    qemu = _qemu(machine, kernel, initramfs, rest, publishes_pool)
    request = VmRequest(
        kind=kind,
        ram_bytes=parse_size(ram) if ram else 0,
        wslconfig=read_wslconfig(wslconfig) if wslconfig else "",
        wslconfig_name=str(wslconfig) if wslconfig else "",
        kernel_release="" if qemu else kernel,
        publishes_pool=publishes_pool,
        machine_address="" if qemu else machine,
        shares=tuple(parse_share(text) for text in share or ()),
        qemu=qemu,
    )

    async def run() -> VmView:
        async with cli.owner() as client:
            return await client.create_vm(request)

    with cli.telemetry():
        vm = asyncio.run(run())
    if json:
        print_json(as_document(vm))
        return
    out().print(vm.vm_id, markup=False)
    for warning in vm.warnings:
        say(f"warning: {warning.text} [{warning.id}]")
    if kind is Kind.WSLC:
        say(f"next: porthole session apply {vm.vm_id}")


def _qemu(
    machine: str, kernel: str, initramfs: str, rest: QemuRequest, publishes_pool: bool | None
) -> QemuRequest | None:
    if machine != QEMU:
        if initramfs or rest != QemuRequest():
            raise typer.BadParameter(f"--initramfs, --cpus and --isolation need --machine {QEMU}")
        return None
    if publishes_pool is not None:
        raise typer.BadParameter("a Linux guest reports by itself whether it publishes its pool")
    return replace(rest, kernel=_absolute(kernel), initramfs=_absolute(initramfs))


def _absolute(path: str) -> str:
    # The owner may run in another directory.
    return str(Path(path).absolute()) if path else ""


@app.command("list")
def list_(ctx: typer.Context, json: JsonFlag = False) -> None:
    """List the VMs, including terminated ones."""
    cli = context.of(ctx)

    async def run() -> list[VmView]:
        async with cli.owner() as client:
            return await client.list_vms()

    vms = asyncio.run(run())
    if json:
        print_json(as_document(VmList(tuple(vms))))
    elif vms:
        out().print(tables.vm_table(vms))
    else:
        say("no VMs; `porthole vm create` makes one")


@app.command()
def show(ctx: typer.Context, vm: VmArgument, json: JsonFlag = False) -> None:
    """Show everything about one VM."""
    cli = context.of(ctx)

    async def run() -> VmView:
        async with cli.owner() as client:
            return await client.get_vm(vm)

    view = asyncio.run(run())
    if json:
        print_json(as_document(view))
        return
    console = out()
    console.print(tables.vm_facts(view))
    if view.shares:
        console.print()
        console.print(tables.share_table(view.shares))
    if view.devices:
        console.print()
        console.print(tables.device_table(view.devices))


@app.command()
def terminate(ctx: typer.Context, vm: VmArgument) -> None:
    """Shut a VM down; it stays listed for a time."""
    cli = context.of(ctx)

    async def run() -> str:
        async with cli.owner() as client:
            vm_id = (await client.get_vm(vm)).vm_id
            await client.terminate_vm(vm_id)
            return vm_id

    with cli.telemetry():
        say(f"terminated {asyncio.run(run())}")


@app.command()
def limit(
    ctx: typer.Context,
    vm: VmArgument,
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Name of the adapter, or its id.")
    ] = "eth0",
    tx: Annotated[
        RateLimit | None,
        typer.Option(
            metavar=LIMIT,
            parser=parse_limit,
            help="How fast frames may go that the guest sends: bytes (not bits) of frames per "
            "second, and frames per second; none: as they come.",
        ),
    ] = None,
    rx: Annotated[
        RateLimit | None,
        typer.Option(metavar=LIMIT, parser=parse_limit, help="The same of frames that it gets."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Limit how fast the frames of an adapter go, at once; show what is in force."""
    cli = context.of(ctx)

    async def run() -> AdapterLimits:
        async with cli.owner() as client:
            return await client.set_rate_limits(vm, adapter, RateLimits(tx, rx))

    with cli.telemetry():
        limits = asyncio.run(run())
    if json:
        print_json(as_document(limits))
        return
    for direction, view in (("tx", limits.transmit), ("rx", limits.receive)):
        out().print(f"{direction} {RateLimit(**asdict(view))}", markup=False)


@app.command()
def watch(ctx: typer.Context, vm: VmArgument, json: JsonFlag = False) -> None:
    """Follow states, warnings and devices until the VM ends."""
    cli = context.of(ctx)

    async def run() -> None:
        async with cli.owner() as client:
            vm_id = (await client.get_vm(vm)).vm_id
            async for event in client.watch_vm(vm_id):
                if json:
                    print_json(as_document(event))
                else:
                    out().print(printable(tables.watch_line(event)), markup=False)
                if isinstance(event, StateEvent) and event.state == "terminated":
                    return

    asyncio.run(run())

"""`porthole demo`: its flags, its progress, its summary and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.cli import context
from services.cli.console import err, fail, out, printable, say
from services.cli.context import make_context
from services.cli.demo import namespace
from services.cli.demo.dashboard import started
from services.cli.demo.demonstration import DemoPlan, Guests, run
from services.cli.demo.report import DemoReport, summary_table
from services.cli.end_signals import end_like_an_interrupt
from services.cli.exit_codes import NEGATIVE
from services.cli.flags import RootFlags
from services.cli.tables import format_bytes
from services.cli.verdict import VALID, broken_rules, judge
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.rpc.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from services.cli.demo.namespace import Surroundings

DEFAULT_OUT: Final = Path("build/demo")

MARK: Final = ".porthole-demo"
"""File that marks a directory as that of a demonstration, and locks it."""

KEPT: Final = frozenset({MARK, "report.json", "trace.jsonl"})
"""Files that stay after a demonstration that passed."""

PORTION_FILES: Final = 1000
"""Approximate number of files that are also written, and read through a mount point; with this many
the demonstration takes under a minute."""

QEMU_PORTION_FILES: Final = 200
"""The same for Linux guests, which may be emulated: then it takes about two minutes."""

NOT_THE_LIBRARY: Final = ("site-packages", "dist-packages")
"""Directories of other parties' packages, below the directory of the standard library."""


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command()(demo)


def demo(
    ctx: typer.Context,
    tree: Annotated[
        Path | None,
        typer.Option(
            help="Directory to work on; by default Python's standard library.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    guest: Annotated[
        Guests,
        typer.Option(
            help="user-space: processes of ours; qemu: Linux guests, which need QEMU and what "
            "`make kernel guest-image` makes."
        ),
    ] = Guests.USER_SPACE,
    portion: Annotated[
        int | None,
        typer.Option(
            help="Approximate number of files also written, and read through a mount point; Linux "
            f"guests read no more. By default {PORTION_FILES}, and {QEMU_PORTION_FILES} with them.",
            min=1,
        ),
    ] = None,
    out_dir: Annotated[
        Path, typer.Option("--out", help="Directory for the results; it is emptied first.")
    ] = DEFAULT_OUT,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the VMs' files, metrics and logs, as after a failure.",
        ),
    ] = False,
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard",
            help="Show the handshakes on a page, during the demonstration and until Ctrl-C. It has "
            "the flags of `porthole dashboard` as variables.",
        ),
    ] = False,
) -> None:
    """Run three VMs on a real directory tree, and compare everything.

    It leaves report.json and trace.jsonl in --out; after a failure, everything.
    """
    cli = context.of(ctx)
    if dashboard:
        cli.check_unsent()
    end_like_an_interrupt()
    began = time.monotonic()
    with _claimed(out_dir.absolute()) as target, contextlib.ExitStack() as stack:
        seen = stack.enter_context(started(target / "dashboard.log")) if dashboard else None
        if seen is not None:
            say(f"the handshakes are seen at {seen.page}/")
        passt = shutil.which(os.environ.get("PORTHOLE_PASST") or "passt") or ""
        surroundings = namespace.enter(passt, target)
        plan = DemoPlan(
            tree=(tree or Path(sysconfig.get_path("stdlib"))).resolve(),
            exclude=() if tree else NOT_THE_LIBRARY,
            out=target,
            portion_files=portion
            or (QEMU_PORTION_FILES if guest is Guests.QEMU else PORTION_FILES),
            trace_file=target / "trace.jsonl",
            mount=surroundings.mount,
            networks=surroundings.networks,
            guests=guest,
        )
        report = _run(plan)
        report.not_shown = _not_shown(surroundings, guest, report)
        report.handshake = _verdict(plan.trace_file, report)
        report.seconds = round(time.monotonic() - began, 3)
        (target / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n")
        if report.passed and not keep:
            _remove_all_but(target, KEPT)
        _summarise(report, target)
        if seen is not None:
            say(f"the handshakes are still seen at {seen.page}/; Ctrl-C ends that")
            with contextlib.suppress(KeyboardInterrupt):
                seen.until_it_ends()
    if not report.passed:
        raise typer.Exit(NEGATIVE)


@contextlib.contextmanager
def _claimed(target: Path) -> Iterator[Path]:
    """Empty a directory and lock it against other demonstrations.

    Raises:
        typer.BadParameter: It is not empty, and not from a demonstration.
        FailedPreconditionError: DEMO_RUNNING.
    """
    marker = target / MARK
    if target.exists() and any(target.iterdir()) and not marker.exists():
        raise typer.BadParameter(
            f"{target} is not empty and not from an earlier demonstration; choose another --out"
        )
    target.mkdir(parents=True, exist_ok=True)
    with marker.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPreconditionError(
                "DEMO_RUNNING", f"another demonstration is using {target}; choose another --out"
            ) from None
        _remove_all_but(target, {MARK})
        yield target


def _remove_all_but(directory: Path, kept: AbstractSet[str]) -> None:
    """Remove the entries of a directory, but for some names.

    Raises:
        OSError: Something cannot be removed, or is a mount point.
    """
    for entry in directory.iterdir():
        if entry.name in kept:
            continue
        for path, why in remove_tree(entry).items():
            raise OSError(errno.EBUSY, f"cannot be removed: {why}", str(path))


def _not_shown(surroundings: Surroundings, guest: Guests, report: DemoReport) -> list[str]:
    """Return what was not shown, and why, once each."""
    lacks = dict(surroundings.lacks)
    if guest is Guests.QEMU:
        # A Linux guest has mount points of its own, and is shown on TAPs only.
        lacks.pop("mount", None)
        lacks.pop("passt", None)
        if namespace.NAT not in surroundings.networks:
            lacks["network"] = "ping and HTTP of Linux guests: not shown, they need root"
    return list(lacks.values()) + sorted({line for vm in report.vms for line in vm.not_shown})


def _run(plan: DemoPlan) -> DemoReport:
    cli = make_context(RootFlags(trace_file=plan.trace_file, wait_s=0.0))
    console = err()
    with cli.telemetry():
        if not console.is_terminal:
            return asyncio.run(run(plan, say))
        with _progress(console) as progress:
            task = progress.add_task("", total=None)
            return asyncio.run(
                run(plan, lambda text: progress.update(task, description=printable(text)))
            )


def _verdict(trace_file: Path, report: DemoReport) -> str:
    """Return "valid" or the first broken rule; TRACE_MISSING when the trace lacks a VM."""
    try:
        verdicts = judge([str(trace_file)])
    except (OSError, InvalidArgumentError) as error:
        fail(str(error))
        return getattr(error, "reason", "TRACE_MISSING")
    if {vm.vm_id for vm in report.vms} != {verdict.vm_id for verdict in verdicts}:
        return "TRACE_MISSING"
    broken = broken_rules(verdicts)
    return broken[0] if broken else VALID


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _summarise(report: DemoReport, target: Path) -> None:
    console = out()
    tree = f"{report.tree}: {report.tree_files} files, {format_bytes(report.tree_bytes)}"
    left_out = f", {report.tree_unreadable} unreadable" if report.tree_unreadable else ""
    console.print(f"{tree}{left_out}", markup=False)
    console.print(summary_table(report))
    console.print(f"handshake: {report.handshake}", style="" if report.passed else "bold")
    for line in report.not_shown:
        console.print(line, markup=False, soft_wrap=True)
    sys.stdout.flush()
    for vm in report.vms:
        for line in vm.failures:
            fail(f"{vm.name}: {line}")
    if report.handshake != VALID:
        fail(f"handshake: {report.handshake}")
    verdict_text = "everything is equal" if report.passed else "FAILED"
    say(f"{verdict_text}; {report.seconds:.1f} s; {target / 'report.json'}")

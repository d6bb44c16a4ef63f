"""`porthole handshake …`: checks the handshake of every VM in a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import tables
from services.cli.arguments import JsonFlag
from services.cli.console import fail, out, print_json
from services.cli.documents import BrokenRule, JudgedVm, Verdict, as_document
from services.cli.exit_codes import NEGATIVE, USAGE
from services.cli.verdict import VALID, broken_rules, judge
from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.handshake.trace.checker import VmVerdict

app = typer.Typer(help="Check handshakes by their traces.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="handshake")


@app.callback()
def group() -> None:
    """Check handshakes by their traces."""


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Lines of OTLP JSON, as --trace-file writes them.")],
    idle: Annotated[
        list[str] | None,
        typer.Option(help="Tag of a device that got no request; may be repeated."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Judge the handshake of each VM, and name the broken rules.

    Exit codes: 0 valid, 1 a rule is broken, 2 the file cannot be read or is no trace.
    """
    try:
        verdicts = judge(file, frozenset(idle or ()))
    except InvalidArgumentError as error:
        fail(f"{error.message} [{error.reason}]")
        raise typer.Exit(USAGE) from None
    broken = broken_rules(verdicts)
    if json:
        summary = broken[0] if broken else VALID
        print_json(as_document(Verdict(summary, tuple(_judged(vm) for vm in verdicts))))
    else:
        out().print(tables.verdict_table(verdicts))
        for vm in verdicts:
            for violation in vm.violations:
                fail(f"{vm.vm_id}: {violation.rule}: {violation.detail}")
    if broken:
        raise typer.Exit(NEGATIVE)


def _judged(vm: VmVerdict) -> JudgedVm:
    broken = tuple(BrokenRule(violation.rule, violation.detail) for violation in vm.violations)
    return JudgedVm(vm.vm_id, vm.kind, vm.token, vm.devices, broken, vm.valid)

"""`porthole handshake …`: checks the handshake of every VM in traces."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli import tables
from services.cli.annotations import annotation_lines, inert
from services.cli.arguments import JsonFlag
from services.cli.console import fail, one_line, out, print_json
from services.cli.documents import BrokenRule, JudgedVm, Verdict, as_document
from services.cli.exit_codes import NEGATIVE, USAGE, exit_code_for
from services.cli.junit import junit_xml
from services.cli.verdict import VALID, broken_rules, judge, miscounted, only
from services.handshake.errors import InvalidArgumentError, PortholeError

if TYPE_CHECKING:
    from services.handshake.trace.checker import VmVerdict

TOKEN_VARIABLE: Final = "PORTHOLE_TRACE_TOKEN"  # noqa: S105 - its name

_MISSING: Final = frozenset({"TRACE_WITHOUT_VM", "TRACE_NOT_FOUND", "TRACE_VM_COUNT"})
"""The reasons that answer the question with no; with others it has no answer."""

app = typer.Typer(help="Check handshakes by their traces.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="handshake")


@app.callback()
def group() -> None:
    """Check handshakes by their traces."""


@app.command()
def verify(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACE...",
            help="Files, `-`, or URLs of Jaeger, Tempo or the dashboard; judged together. OTLP "
            "JSON, Jaeger's or Tempo's JSON, also as gzip.",
        ),
    ],
    idle: Annotated[
        list[str] | None,
        typer.Option(help="Tag of a device that got no request; may be repeated."),
    ] = None,
    vm: Annotated[
        list[str] | None,
        typer.Option(help="Id of a VM that must be in the trace; no others are judged."),
    ] = None,
    expect: Annotated[
        int | None, typer.Option(help="Number of VMs that must be judged.", min=1)
    ] = None,
    trace_id: Annotated[
        list[str] | None,
        typer.Option(help="Trace to ask for, where the URL is the base of Jaeger or Tempo."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the verdict there as JUnit XML, too.")
    ] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github",
            help="Annotations of GitHub Actions, on stderr; by default there (GITHUB_ACTIONS).",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Judge the handshake of each VM, and name the broken rules.

    Exit codes: 0 valid, 1 a rule is broken or the trace is missing, 2 an input cannot be read or is
    no trace, 4 a server cannot be reached.
    """
    report = _Report(
        junit, os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github, json
    )
    try:
        token = os.environ.get(TOKEN_VARIABLE, "")
        found = judge(sources, frozenset(idle or ()), trace_ids=trace_id or (), token=token)
        verdicts = only(found, vm or ())
    except (PortholeError, OSError) as error:
        report.write([], error)
        raise typer.Exit(_exit_code(error)) from None
    missing = miscounted(verdicts, expect)
    report.write(verdicts, missing)
    if missing or broken_rules(verdicts):
        raise typer.Exit(NEGATIVE)


@dataclass(frozen=True, slots=True)
class _Report:
    """Where the verdict goes."""

    junit: Path | None
    github: bool
    json: bool

    def write(self, verdicts: list[VmVerdict], error: PortholeError | OSError | None) -> None:
        """Write verdicts, and what is wrong with the trace as a whole.

        Raises:
            OSError: The JUnit file cannot be written.
        """
        failure = None if error is None else _explained(error)
        if self.junit is not None:
            self.junit.write_text(junit_xml(verdicts, failure), encoding="utf-8")
        if failure is not None:
            fail(self._line(f"{failure[1]} [{failure[0]}]"))
        if self.json:
            # Programs get a document whenever there is an answer, also when that is no.
            if failure is None or failure[0] in _MISSING:
                print_json(as_document(_verdict(verdicts, failure)))
        elif verdicts:
            out().print(tables.verdict_table(verdicts, self._line))
        for vm in verdicts if not self.json else ():
            for violation in vm.violations:
                fail(self._line(f"{vm.vm_id}: {violation.rule}: {violation.detail}"))
        if self.github:
            for line in annotation_lines(verdicts, failure):
                sys.stderr.write(f"{line}\n")

    def _line(self, text: str) -> str:
        line = one_line(text)
        return inert(line) if self.github else line


def _explained(error: PortholeError | OSError) -> tuple[str, str]:
    if isinstance(error, PortholeError):
        return error.reason, error.message
    where = f": {error.filename}" if error.filename else ""
    return "INPUT_UNREADABLE", f"{error.strerror or error}{where}"


def _exit_code(error: PortholeError | OSError) -> int:
    if isinstance(error, OSError):
        return USAGE
    if error.reason in _MISSING:
        return NEGATIVE
    return USAGE if isinstance(error, InvalidArgumentError) else exit_code_for(error)


def _verdict(verdicts: list[VmVerdict], failure: tuple[str, str] | None) -> Verdict:
    broken = broken_rules(verdicts)
    summary = failure[0] if failure else broken[0] if broken else VALID
    return Verdict(summary, tuple(map(_judged, verdicts)))


def _judged(vm: VmVerdict) -> JudgedVm:
    broken = tuple(BrokenRule(violation.rule, violation.detail) for violation in vm.violations)
    return JudgedVm(vm.vm_id, vm.kind, vm.token, vm.devices, broken, vm.valid)

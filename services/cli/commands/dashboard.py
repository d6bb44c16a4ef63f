"""`porthole dashboard`: becomes the process of the dashboard, with the flags as they are."""

from __future__ import annotations

import os
import sys

import typer

PROGRAM = "services.dashboard"


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        context_settings={
            "allow_extra_args": True,
            "ignore_unknown_options": True,
            "help_option_names": [],
        },
        options_metavar="[OPTIONS]; --help lists them",
    )(dashboard)


def dashboard(ctx: typer.Context) -> None:
    """Receive traces and metrics, judge the handshakes, and serve the page (docs/dashboard.md).

    It needs no other service. Ctrl-C ends it.
    """
    sys.stdout.flush()
    # The program's flags are its own; this process becomes it, so that signals reach it.
    arguments = [sys.executable, "-m", PROGRAM, *ctx.args]
    os.execv(sys.executable, arguments)  # noqa: S606 - the flags are the caller's own

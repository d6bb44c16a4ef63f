"""The root of `porthole`: global flags, the groups, and how errors become exit codes.

Must not know what a command does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from services.cli import (
    demo_command,
    handshake_commands,
    service_commands,
    session_commands,
    share_commands,
    vm_commands,
)
from services.cli.console import fail
from services.cli.context import DEFAULT_WAIT_S, make_context
from services.cli.exit_codes import INTERRUPTED, OK, USAGE, exit_code_for
from services.handshake.errors import PortholeError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class PortholeGroup(TyperGroup):
    """The root group: one clear line on stderr and an exit code instead of a traceback."""

    def invoke(self, ctx: Any) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PortholeError as error:
            fail(f"{error.message} [{error.reason}]")
            raise typer.Exit(exit_code_for(error)) from None
        except BrokenPipeError:
            # A reader that has seen enough, `porthole share hash … | head -1`, is not an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            fail(f"{error.strerror or error}{where}")
            raise typer.Exit(USAGE) from None
        except ValidationError as error:
            for problem in error.errors():
                fail(_explain(problem))
            raise typer.Exit(USAGE) from None
        except UnicodeEncodeError as error:
            fail(f"{error.object!r} cannot be written as {error.encoding}; choose another name")
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _explain(problem: ErrorDetails) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    name = "_".join(str(part) for part in problem["loc"]).upper()
    return f"PORTHOLE_{name}={problem['input']!r}: {text}" if name else text


app = typer.Typer(
    name="porthole",
    cls=PortholeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong usage or unreadable input, "
    "3 refused by a service, 4 a service is out of reach, 130 interrupted.",
)
app.add_typer(vm_commands.app, name="vm")
app.add_typer(share_commands.app, name="share")
app.add_typer(session_commands.app, name="session")
app.add_typer(handshake_commands.app, name="handshake")
service_commands.register(app)
demo_command.register(app)


@app.callback()
def root(
    ctx: typer.Context,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Directory of the services' sockets.", envvar="PORTHOLE_RUN_DIR"),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            help="VM owner, unix:/path or host:port; by default the one in the run directory.",
            envvar="PORTHOLE_OWNER",
        ),
    ] = None,
    trace_file: Annotated[
        Path | None,
        typer.Option(
            help="Append this command's spans, as lines of OTLP JSON.",
            envvar="PORTHOLE_TRACE_FILE",
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a service that is not up yet.", min=0.0)
    ] = DEFAULT_WAIT_S,
) -> None:
    """Virtio devices confined to the DMA pool that the guest kernel reserved."""
    ctx.obj = make_context(run_dir, owner, trace_file, wait)


def main() -> None:
    """Run `porthole`; the console script."""
    app()


if __name__ == "__main__":
    main()

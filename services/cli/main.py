"""The root of `porthole`: global flags, and how errors become exit codes.

The commands are the modules in commands/. A command's module is imported when it is called, so that
no command pays for the libraries of another.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from services.cli import commands
from services.cli.console import fail
from services.cli.exit_codes import INTERRUPTED, OK, USAGE, exit_code_for
from services.cli.flags import DEFAULT_WAIT_S, RootFlags
from services.handshake.errors import PortholeError


class PortholeGroup(TyperGroup):
    """The root group: one clear line on stderr and an exit code instead of a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of all commands and groups: of the modules in commands/, sorted."""
        return sorted(module.name for module in iter_modules(commands.__path__))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the module of a command or group; None when there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        part = typer.Typer(rich_markup_mode=None)
        import_module(f"{commands.__name__}.{cmd_name}").register(part)
        return get_group(part).get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PortholeError as error:
            fail(f"{error.message} [{error.reason}]")
            raise typer.Exit(exit_code_for(error)) from None
        except BrokenPipeError:
            # The reader has closed the pipe, as in `porthole share hash … | head -1`: no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            fail(f"{error.strerror or error}{where}")
            raise typer.Exit(USAGE) from None
        except UnicodeEncodeError as error:
            fail(f"{error.object!r} cannot be written as {error.encoding}; choose another name")
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="porthole",
    cls=PortholeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong usage or unreadable input, "
    "3 refused by a service, 4 a service is out of reach, 130 interrupted.",
)


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
            help="VM owner, unix:/path or tcp://host:port; by default the run directory's.",
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
    ctx.obj = RootFlags(run_dir, owner, trace_file, wait)


def main() -> None:
    """Run `porthole`; the console script."""
    app()


def device_fs() -> None:
    """Run `porthole device fs`; the console script `porthole-fs`.

    libvirt and others accept a path in place of virtiofsd's, but no command with arguments.
    """
    app(["device", "fs", *sys.argv[1:]])


if __name__ == "__main__":
    main()

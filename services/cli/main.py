"""The root of `porthole`: global flags, the groups, and how errors become exit codes.

A command's module is imported when it is called, so that none pays for the libraries of another.
Must not know what a command does.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_group

from services.cli.console import fail
from services.cli.exit_codes import INTERRUPTED, OK, USAGE, exit_code_for
from services.cli.flags import DEFAULT_WAIT_S, RootFlags
from services.handshake.errors import PortholeError

_MODULES: Final = {
    "demo": "demo_command",
    "device": "device_commands",
    "handshake": "handshake_commands",
    "health": "service_commands",
    "session": "session_commands",
    "share": "share_commands",
    "up": "service_commands",
    "version": "service_commands",
    "vm": "vm_commands",
}
"""Each command or group of the root, and the module whose `register` adds it."""


class PortholeGroup(TyperGroup):
    """The root group: one clear line on stderr and an exit code instead of a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Tell the names of all commands."""
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None when there is none of that name."""
        if cmd_name not in _MODULES:
            return None
        part = typer.Typer(rich_markup_mode=None)
        import_module(f"services.cli.{_MODULES[cmd_name]}").register(part)
        return get_group(part).get_command(ctx, cmd_name)

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
    ctx.obj = RootFlags(run_dir, owner, trace_file, wait)


def main() -> None:
    """Run `porthole`; the console script."""
    app()


def device_fs() -> None:
    """Run `porthole device fs`; the console script `porthole-fs`.

    Who starts virtiofsd, as libvirt does, can be told another path, but no command.
    """
    app(["device", "fs", *sys.argv[1:]])


if __name__ == "__main__":
    main()

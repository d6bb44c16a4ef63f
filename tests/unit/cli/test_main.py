from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_group
from typer.testing import CliRunner

from services.cli import commands
from services.cli.exit_codes import OK, UNREACHABLE, USAGE
from services.cli.main import PortholeGroup, app

RUNNER = CliRunner()

ALL_COMMANDS = [
    [],
    ["up"],
    ["demo"],
    ["run"],
    ["health"],
    ["version"],
    *(["vm", name] for name in ("create", "limit", "list", "show", "terminate", "watch")),
    *(["port", name] for name in ("add", "remove", "list")),
    *(["share", name] for name in ("add", "remove", "list", "hash")),
    ["session", "apply"],
    ["handshake", "verify"],
]


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == OK
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["no-such-command"],
        ["vm", "create", "--kind", "wsl3"],
        ["vm", "create", "--ram", "many"],
        ["vm", "create", "--ram", "99999999999T"],
        ["vm", "create", "--wslconfig", "/nowhere/.wslconfig"],
        ["vm", "create", "--share", ",ro"],
        ["vm", "show"],
        ["--wait", "soon", "vm", "list"],
        ["--owner", "nowhere", "vm", "list"],
        ["--owner", "unix:relative", "vm", "list"],
        ["health", "127.0.0.1:99999"],
        ["demo", "--tree", "/nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_reported_on_stderr(command: list[str]) -> None:
    result = RUNNER.invoke(app, command)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["vm", "list"],
        ["vm", "create"],
        ["vm", "show", "x"],
        ["vm", "watch", "x"],
        ["vm", "limit", "x"],
        ["vm", "terminate", "x"],
        ["port", "add", "x", "8080:80"],
        ["port", "remove", "x", "8080"],
        ["port", "list", "x"],
        ["share", "list", "x"],
        ["share", "add", "x", "/"],
        ["share", "remove", "x", "y"],
        ["share", "hash", "x", "y"],
        ["session", "apply", "x"],
    ],
    ids=" ".join,
)
def test_without_a_vm_owner_it_is_one_line_and_4(command: list[str], run_dir: Path) -> None:
    result = RUNNER.invoke(app, ["--run-dir", str(run_dir), "--wait", "0.1", *command])
    assert result.exit_code == UNREACHABLE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(run_dir / "owner.sock") in line


def test_a_run_directory_that_is_too_long_is_reported_in_one_line() -> None:
    run_dir = f"/tmp/{'x' * 120}"
    result = RUNNER.invoke(app, ["--run-dir", run_dir, "vm", "list"])
    assert result.exit_code == USAGE
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: socket path '{run_dir}/")
    assert "at most 107" in line


def test_a_setting_in_the_environment_that_is_wrong_is_named(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTHOLE_LOG_LEVEL", "loud")
    result = RUNNER.invoke(app, ["--run-dir", str(run_dir), "vm", "list"])
    assert result.exit_code == USAGE
    (line,) = result.stderr.splitlines()
    assert "PORTHOLE_LOG_LEVEL='loud'" in line


def test_an_empty_id_of_a_vm_is_no_id(run_dir: Path) -> None:
    result = RUNNER.invoke(app, ["--run-dir", str(run_dir), "vm", "show", ""])
    assert result.exit_code == USAGE
    assert "'' is not the id of a VM; give 4 characters of it or more" in result.stderr
    assert "`porthole vm list`" in result.stderr


def test_the_root_lists_what_stands_in_commands() -> None:
    listed = PortholeGroup().list_commands(None)
    assert listed == [
        *(
            "dashboard",
            "demo",
            "device",
            "handshake",
            "health",
            "port",
            "run",
            "session",
            "share",
            "up",
            "version",
            "vm",
        ),
    ]
    files = {file.stem for file in Path(*commands.__path__).glob("*.py")} - {"__init__"}
    assert set(listed) == files
    shown = RUNNER.invoke(app, ["--help"]).stdout.partition("Commands:")[2]
    lines = [line.split() for line in shown.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines if line[0] in files] == listed
    assert all(len(line) > 1 for line in lines), "each has a help text"


@pytest.mark.parametrize("name", PortholeGroup().list_commands(None))
def test_a_module_registers_the_one_command_of_its_name(name: str) -> None:
    root = typer.Typer()
    import_module(f"{commands.__name__}.{name}").register(root)
    assert list(get_group(root).commands) == [name]


def test_a_command_is_imported_when_it_is_called() -> None:
    code = (
        "import sys\n"
        "from services.cli.main import app\n"
        "app(['device', 'fs', '--print-capabilities'], standalone_mode=False)\n"
        "commands = {name for name in sys.modules if name.startswith('services.cli.commands.')}\n"
        "assert commands == {'services.cli.commands.device'}, commands\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'rich', 'grpc', 'google'}\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

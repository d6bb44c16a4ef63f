"""`porthole-fs` started with the lines with which known programs start virtiofsd."""

from __future__ import annotations

import grp
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.cli.exit_codes import USAGE
from services.cli.virtiofsd.document import outcome
from services.cli.virtiofsd.launchers import LINES
from services.cli.virtiofsd.reading import read
from tests.support.front_end import RawFrontEnd
from tests.support.standalone import DEADLINE_S, fs, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.cli.virtiofsd.launchers import Line

STARTS = [line for line in LINES if outcome(line).startswith("starts")]
REFUSED = [line for line in LINES if line not in STARTS]
PORTHOLE_FS = Path(sys.executable).with_name("porthole-fs")


def name_of(line: Line) -> str:
    return f"{line.program}: {line.when}"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory


@pytest.fixture
def listening(run_dir: Path) -> Iterator[socket.socket]:
    """The listening socket that libvirt, Kata and Incus hand in."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{run_dir}/theirs.sock")
        made.listen(1)
        yield made


def filled(line: Line, run_dir: Path, shared: Path, fd: int) -> list[str]:
    """Put real names in place of those in a line."""
    real = {
        "DIRECTORY": str(shared),
        "SOCKET": f"{run_dir}/s.sock",
        "GROUP": grp.getgrgid(os.getegid()).gr_name,
        "TAG": "data",
        "--fd=3": f"--fd={fd}",
    }
    text = line.options
    for name, value in real.items():
        text = text.replace(name, value)
    return text.split()


@pytest.mark.parametrize("line", STARTS, ids=name_of)
def test_a_line_starts_the_device(
    line: Line, run_dir: Path, shared: Path, listening: socket.socket
) -> None:
    arguments = filled(line, run_dir, shared, listening.fileno())
    with running("fs", *arguments, fds=[listening.fileno()]) as device:
        assert device.line.startswith("porthole device fs ready on unix:"), device.end()
        with RawFrontEnd(device.socket_path) as front_end:
            front_end.negotiate()
        code, log = device.end()
    assert code == 0, log
    if "--syslog" not in arguments or not Path("/dev/log").exists():
        for note in read(line.options.split()).notes:
            assert log.count(note.partition(": ")[0]) == 1, log


@pytest.mark.parametrize("line", REFUSED, ids=name_of)
def test_a_line_that_asks_for_more_is_refused(
    line: Line, run_dir: Path, shared: Path, listening: socket.socket
) -> None:
    arguments = filled(line, run_dir, shared, listening.fileno())
    result = subprocess.run(
        [PORTHOLE_FS, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        pass_fds=[listening.fileno()],
        check=False,
    )
    assert (result.returncode, result.stdout) == (USAGE, "")
    (said,) = result.stderr.splitlines()
    asked = outcome(line).removeprefix("refused: ").strip("`")
    assert said.startswith(f"error: {asked}: ")
    assert said.endswith("[OPTION_REFUSED]")
    assert [path.name for path in run_dir.iterdir()] == ["theirs.sock"]


def test_virtme_ng_finds_what_it_looks_for(run_dir: Path, shared: Path) -> None:
    """It asks for the version and the help, and waits for the file with the process id."""
    version = subprocess.check_output([PORTHOLE_FS, "--version"], text=True)
    assert version.startswith("porthole-fs ")
    assert "--readonly" in subprocess.check_output([PORTHOLE_FS, "-h"], text=True)
    pid_file = run_dir / "s.sock.pid"
    (run_dir / "elsewhere").write_text("kept")
    pid_file.symlink_to(run_dir / "elsewhere")
    with running(*fs(run_dir, shared)) as device:
        assert pid_file.read_text() == f"{device.process.pid}\n"
        assert not pid_file.is_symlink()
        assert device.terminate()[0] == 0
    assert [path.name for path in run_dir.iterdir()] == ["elsewhere"]
    assert (run_dir / "elsewhere").read_text() == "kept"


def test_the_limit_of_descriptors_is_kept(run_dir: Path, shared: Path) -> None:
    with running(*fs(run_dir, shared, "--rlimit-nofile=1000")) as device:
        proc = Path(f"/proc/{device.process.pid}")
        limits = proc.joinpath("limits").read_text()
        (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == ["1000", "1000"]
        status = dict(
            row.split(":\t")
            for row in proc.joinpath("status").read_text().splitlines()
            if ":\t" in row
        )
        for sets in ("CapEff", "CapPrm"):
            assert int(status[sets], 16) & 1 << 24 == 0, "CAP_SYS_RESOURCE would raise it again"
        assert device.terminate()[0] == 0


def test_the_syslog_gets_the_log() -> None:
    with tempfile.TemporaryDirectory(prefix="ph-") as directory:
        path = f"{directory}/log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
            syslog.settimeout(DEADLINE_S)
            syslog.bind(path)
            subprocess.run([sys.executable, "-c", _LOG, path], check=True, timeout=DEADLINE_S)
            first, second = syslog.recv(1000), syslog.recv(1000)
        nobody = subprocess.run(
            [sys.executable, "-c", _LOG, path], check=True, capture_output=True, text=True
        )
    assert first.startswith(b"<14>porthole-fs[")  # facility user, severity info
    assert b"]: the note" in first
    assert second.startswith(b"<12>porthole-fs[")
    assert "WARNING: --syslog: " in nobody.stderr
    assert "INFO: the note" in nobody.stderr


_LOG = """
import logging, sys
from services.cli import daemon
daemon.SYSLOG = sys.argv[1]
daemon.start_log("fs", daemon.LogLevel.INFO, ("the note",), syslog=True)
logging.warning("the end")
"""

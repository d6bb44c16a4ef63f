from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import arguments, verdict
from services.cli.exit_codes import USAGE
from services.cli.main import app
from services.handshake.errors import InvalidArgumentError
from services.rpc import inputs
from services.rpc.inputs import read_bounded

RUNNER = CliRunner()
SOON_S = 0.2


def refusal(path: Path, limit_bytes: int) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        read_bounded(path, limit_bytes, "the remedy")
    assert str(path) in caught.value.message
    return f"{caught.value.reason}: {caught.value.message}"


def test_a_file_of_just_the_bound_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345678")
    assert read_bounded(file, 8, "") == b"12345678"
    assert refusal(file, 7).startswith("INPUT_TOO_LARGE")
    assert "7 bytes" in refusal(file, 7)
    assert "the remedy" in refusal(file, 7)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream:
            for _ in range(3):
                stream.write(b"ab")
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_bounded(pipe, 6, "") == b"ababab"
    writer.join()


def test_a_pipe_without_a_writer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "TIME_LIMIT_S", SOON_S)
    os.mkfifo(tmp_path / "pipe")
    assert "within 0.2 s, after 0 bytes" in refusal(tmp_path / "pipe", 100)


def test_a_pipe_whose_writer_is_slow_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "TIME_LIMIT_S", SOON_S)
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(writer, b"abc")
        assert "INPUT_TOO_SLOW" in refusal(tmp_path / "pipe", 100)
    finally:
        os.close(writer)


def test_a_file_that_grows_without_end_ends(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert "INPUT_TOO_LARGE" in refusal(tmp_path / "sparse", 100)
    assert "INPUT_TOO_LARGE" in refusal(Path("/dev/zero"), 1 << 22)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "sparse"])
@pytest.mark.parametrize("command", ["handshake verify", "vm create --wslconfig"])
def test_every_command_that_reads_a_file_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    monkeypatch.setattr(inputs, "TIME_LIMIT_S", SOON_S)
    monkeypatch.setattr(verdict, "TRACE_LIMIT_BYTES", 1 << 22)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    result = RUNNER.invoke(app, [*command.split(), str(tmp_path / kind)])
    assert result.exit_code == USAGE
    if kind == "pipe":
        assert "INPUT_TOO_SLOW" in result.stderr
    else:
        bound = {"handshake verify": 1 << 22}.get(command, arguments.WSLCONFIG_LIMIT_BYTES)
        assert "INPUT_TOO_LARGE" in result.stderr
        assert str(bound) in result.stderr

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from services.cli.arguments import parse_share, parse_size, read_wslconfig
from services.cli.exit_codes import REFUSED, UNREACHABLE, exit_code_for
from services.cli.requests import ShareRequest
from services.handshake import errors


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("64mb", 64 << 20),
        (" 2G ", 2 << 30),
        ("1T", 1 << 40),
    ],
)
def test_a_size_is_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "2.5G", "G", "64X", "0x40", "٣M"])
def test_a_text_that_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message


def test_a_share_is_a_directory_with_a_tag_and_options() -> None:
    assert parse_share("/srv/a,ro,tag=data,uid=1000") == ShareRequest(
        "/srv/a", "data", "ro;uid=1000"
    )


def test_a_share_may_be_one_of_the_aggregate_device() -> None:
    assert parse_share("/srv/a,aggregate,ro") == ShareRequest(
        "/srv/a", options="ro", aggregate=True
    )


def test_the_directory_of_a_share_becomes_absolute() -> None:
    assert parse_share("here").host_path == str(Path.cwd() / "here")


@pytest.mark.parametrize("text", ["", ",ro", "/a,tag=x,tag=y"])
def test_a_text_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_share(text)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgumentError, REFUSED),
        (errors.NotFoundError, REFUSED),
        (errors.AlreadyExistsError, REFUSED),
        (errors.FailedPreconditionError, REFUSED),
        (errors.PermissionDeniedError, REFUSED),
        (errors.ResourceExhaustedError, REFUSED),
        (errors.DeadlineExceededError, UNREACHABLE),
        (errors.UnavailableError, UNREACHABLE),
        (errors.PortholeError, REFUSED),
    ],
)
def test_every_kind_of_error_has_an_exit_code(error: type[errors.PortholeError], code: int) -> None:
    assert exit_code_for(error("REASON", "text")) == code


def test_a_wslconfig_that_is_no_text_is_refused_by_file_and_byte(tmp_path: Path) -> None:
    file = tmp_path / ".wslconfig"
    file.write_bytes(b"[wsl2]\nmemory=\xff\n")
    with pytest.raises(typer.BadParameter, match=rf"{file}: not UTF-8 at byte 14"):
        read_wslconfig(file)

"""`porthole dashboard` becomes the program of the dashboard."""

from __future__ import annotations

import os
import sys

import pytest
from typer.testing import CliRunner

from services.cli.main import app

RUNNER = CliRunner()


class Became(Exception):  # noqa: N818 - what exec does, which returns to nobody
    pass


@pytest.mark.parametrize(
    "flags",
    [[], ["--listen", "127.0.0.1:0", "--keep-days=3"], ["--help"], ["--trace-link", "J=http://j"]],
)
def test_the_flags_are_those_of_the_program(
    monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    became: list[tuple[str, list[str]]] = []

    def become(path: str, arguments: list[str]) -> None:
        became.append((path, arguments))
        raise Became

    monkeypatch.setattr(os, "execv", become)
    result = RUNNER.invoke(app, ["dashboard", *flags])
    assert isinstance(result.exception, Became)
    expected = [sys.executable, "-m", "services.dashboard", *flags]
    assert became == [(sys.executable, expected)]

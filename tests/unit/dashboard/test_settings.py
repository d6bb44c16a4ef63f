"""The settings of the dashboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.dashboard.settings import DashboardSettings, default_database
from services.rpc.settings import load


def read(*arguments: str) -> DashboardSettings:
    return load(DashboardSettings, list(arguments))


def test_defaults_are_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    # They are for the services that send.
    monkeypatch.setenv("PORTHOLE_LISTEN", "nonsense")
    settings = read()
    assert settings.listen == ("127.0.0.1:4380",)
    assert (settings.otlp_grpc, settings.otlp_http) == (("127.0.0.1:4317",), ("127.0.0.1:4318",))
    assert settings.database == Path("/state/porthole/dashboard.sqlite")
    assert settings.token() == ""


def test_a_state_home_that_is_relative_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", "/home/somebody")
    expected = Path("/home/somebody/.local/state/porthole/dashboard.sqlite")
    assert default_database() == expected


def test_variables_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTHOLE_DASHBOARD_KEEP_DAYS", "3")
    monkeypatch.setenv("PORTHOLE_DASHBOARD_OTLP_GRPC", "127.0.0.1:1,unix:/run/otlp.sock")
    settings = read("--listen", "127.0.0.1:2", "--listen", "[::1]:3", "--keep-mib", "64")
    assert settings.listen == ("127.0.0.1:2", "[::1]:3")
    assert settings.otlp_grpc == ("127.0.0.1:1", "unix:/run/otlp.sock")
    assert (settings.keep_days, settings.keep_mib) == (3, 64)


def test_links() -> None:
    settings = read("--trace-link", "Jaeger=http://j/trace/{trace_id}?a=b,c")
    assert settings.links == {"Jaeger": "http://j/trace/{trace_id}?a=b,c"}
    settings = read(
        *("--trace-link", "Jaeger=http://j/{trace_id}?a=b,c"),
        *("--trace-link", "My Tempo=https://t/{vm_id}"),
    )
    assert settings.links == {
        "Jaeger": "http://j/{trace_id}?a=b,c",
        "My Tempo": "https://t/{vm_id}",
    }


def test_files_to_load() -> None:
    settings = read("--load", "a.jsonl,b", "--load", "/c d.gz")
    assert settings.load == (Path("a.jsonl"), Path("b"), Path("/c d.gz"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--listen", "0.0.0.0:4380"), "--token-file"),
        (("--otlp-grpc", "10.0.0.1:4317"), "--otlp-grpc 10.0.0.1:4317 can be reached"),
        (("--otlp-http", "[::]:4318"), "--otlp-http"),
        (("--listen", ","), "no address"),
        (("--listen", "nonsense"), "neither"),
        (("--keep-days", "0"), "keep-days"),
        (("--keep-mib", "1"), "keep-mib"),
        (("--settle-s", "-1"), "settle-s"),
        (("--trace-link", "javascript:alert(1)"), "trace-link"),
        (("--trace-link", "J=javascript:alert(1)"), "trace-link"),
        (("--nonsense", "1"), "nonsense"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        read(*arguments)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert "Traceback" not in shown


def test_with_a_token_others_may_ask(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    settings = read("--listen", "0.0.0.0:4380", "--token-file", str(file))
    assert settings.token() == "0123456789abcdef"


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 20, b"x" * 300])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="has no token"):
        read("--token-file", str(file)).token()

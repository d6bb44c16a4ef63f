from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from services.cli.download import download
from services.handshake.errors import PortholeError
from services.rpc import inputs
from tests.support.http_server import Answer, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 1 << 20


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with serving({"/trace": Answer(b"the trace")}) as running:
        yield running


def refusal(url: str, limit: int = LIMIT, token: str = "") -> str:
    with pytest.raises(PortholeError) as caught:
        download(url, limit, "the remedy", token)
    assert url in caught.value.message
    return f"{caught.value.reason}: {caught.value.message}"


def test_a_body_is_read_whole(server: Server) -> None:
    assert download(f"{server.url}/trace", 9, "") == b"the trace"
    [(_, headers)] = server.asked
    assert headers["Accept"] == "application/json"
    assert "Authorization" not in headers


def test_a_token_goes_to_the_server_and_stays_with_it(server: Server) -> None:
    server.answers["/old"] = Answer(status=302, headers={"Location": "/trace"})
    assert download(f"{server.url}/old", LIMIT, "", "secret") == b"the trace"
    assert [headers["Authorization"] for _, headers in server.asked] == ["Bearer secret"] * 2

    with serving({}) as other:
        server.answers["/away"] = Answer(status=302, headers={"Location": f"{other.url}/trace"})
        assert f"redirects to {other.url}/trace" in refusal(f"{server.url}/away", token="secret")
        assert other.asked == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://h/x", "data:,x", "https://h/x"])
def test_no_redirect_leads_elsewhere(server: Server, target: str) -> None:
    server.answers["/away"] = Answer(status=302, headers={"Location": target})
    assert refusal(f"{server.url}/away").startswith("INPUT_UNREACHABLE: ")


def test_redirects_in_a_circle_end(server: Server) -> None:
    server.answers["/circle"] = Answer(status=302, headers={"Location": "/circle"})
    assert refusal(f"{server.url}/circle").startswith("INPUT_UNREACHABLE: ")
    assert len(server.asked) <= 5


def test_a_trace_that_the_server_does_not_have_is_missing(server: Server) -> None:
    said = refusal(f"{server.url}/nowhere")
    assert said.startswith("TRACE_NOT_FOUND: ")
    assert "(404 Not Found: trace not found)" in said


@pytest.mark.parametrize("status", [204, 401, 500])
def test_another_status_is_an_error(server: Server, status: int) -> None:
    server.answers["/trace"] = Answer(b"why\x1b not" * 100, status)
    if status == 204:
        assert download(f"{server.url}/trace", LIMIT, "") == b""
        return
    said = refusal(f"{server.url}/trace")
    assert said.startswith("INPUT_UNREACHABLE: ")
    assert f"the server answers with {status}" in said
    assert len(said) < 500


def test_an_answer_has_a_bound(server: Server) -> None:
    assert "INPUT_TOO_LARGE" in refusal(f"{server.url}/trace", 8)
    server.answers["/large"] = Answer(b"x" * (4 << 20), length=1 << 40)
    said = refusal(f"{server.url}/large")
    assert "INPUT_TOO_LARGE" in said
    assert f"longer than {LIMIT} bytes" in said
    assert "the remedy" in said


def test_an_answer_that_ends_too_early_is_an_error(server: Server) -> None:
    server.answers["/trace"] = Answer(b"the", length=9)
    assert "the answer ends after 3 bytes, too early" in refusal(f"{server.url}/trace")


def test_an_answer_that_does_not_end_has_a_bound(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "TIME_LIMIT_S", 0.2)
    server.answers["/slow"] = Answer(b"the", length=9, then_wait=threading.Event())
    said = refusal(f"{server.url}/slow")
    assert said.startswith("INPUT_TOO_SLOW: ")
    assert "within 0.2 s, after 3 bytes" in said


def test_headers_that_do_not_end_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "TIME_LIMIT_S", 0.3)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    ended = threading.Event()

    def drip() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.01):
                try:
                    peer.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            said = refusal(f"http://127.0.0.1:{listener.getsockname()[1]}/trace")
        finally:
            ended.set()
            thread.join()
    assert said.startswith("INPUT_TOO_SLOW: ")


def test_nobody_who_answers_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = refusal(f"http://127.0.0.1:{port}/trace")
    assert said.startswith("INPUT_UNREACHABLE: ")
    assert "refused" in said


def test_what_is_no_http_is_an_error() -> None:
    def answer() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(b"SSH-2.0-OpenSSH\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        said = refusal(f"http://127.0.0.1:{listener.getsockname()[1]}/trace")
        thread.join()
    assert said.startswith("INPUT_UNREACHABLE: ")

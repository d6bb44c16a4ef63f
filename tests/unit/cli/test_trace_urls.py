from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.trace_urls import is_url, query_url
from services.handshake.errors import InvalidArgumentError

ID = "0af7651916cd43dd8448eb211c80319c"
VM = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("given_url", "asked"),
    [
        (f"http://h:16686/trace/{ID}", f"http://h:16686/api/traces/{ID}?raw=true"),
        (f"https://h/jaeger/trace/{ID}/?uiFind=x#y", f"https://h/jaeger/api/traces/{ID}?raw=true"),
        (f"http://h:16686/api/traces/{ID}", f"http://h:16686/api/traces/{ID}"),
        (f"http://h:3200/api/v2/traces/{ID}?start=1", f"http://h:3200/api/v2/traces/{ID}?start=1"),
        ("http://h/api/traces?service=owner", "http://h/api/traces?service=owner"),
        (f"http://h:4380/vm/{VM}", f"http://h:4380/api/v1/vms/{VM}/trace"),
        (f"http://h:4380/api/v1/vms/{VM}/trace", f"http://h:4380/api/v1/vms/{VM}/trace"),
        ("http://h/vm/trace.jsonl.gz", "http://h/vm/trace.jsonl.gz"),
        ("http://[::1]:80/a.json#top", "http://[::1]:80/a.json"),
    ],
)
def test_the_address_of_a_page_leads_to_that_of_the_trace(given_url: str, asked: str) -> None:
    assert is_url(given_url)
    assert query_url(given_url) == asked


@pytest.mark.parametrize("base", ["http://h:3200", "http://h:3200/"])
def test_a_base_is_asked_for_a_trace_by_its_id(base: str) -> None:
    assert query_url(base, ID.upper()) == f"http://h:3200/api/traces/{ID}?raw=true"
    assert query_url(f"{base}/tempo".replace("//t", "/t"), "ab") == (
        "http://h:3200/tempo/api/traces/ab?raw=true"
    )


@pytest.mark.parametrize(
    ("text", "trace_id", "said"),
    [
        ("ftp://h/trace", "", "only http:// and https://"),
        ("file:///etc/passwd", "", "only http:// and https://"),
        ("http:///trace", "", "only http:// and https://"),
        ("http://h:port/trace", "", "port"),
        ("http://[::1/trace", "", "IPv6"),
        ("http://h", "", "it names no trace; add --trace-id"),
        ("http://h/", "", "it names no trace; add --trace-id"),
        ("http://h", "xyz", "at most 32 hexadecimal digits"),
        ("http://h", "a/../b", "at most 32 hexadecimal digits"),
        ("http://h/a b", "", "percent-encoded"),
        ("http://h/a\r\nHost: other", "", "percent-encoded"),
        ("http://hé/a", "", "percent-encoded"),
    ],
)
def test_what_is_no_address_of_a_trace_is_refused(text: str, trace_id: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        query_url(text, trace_id)
    assert caught.value.reason == "INPUT_URL"
    assert said in caught.value.message


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        query_url("http://me:secret@h/api/traces/1")
    assert "secret" not in caught.value.message
    assert "PORTHOLE_TRACE_TOKEN" in caught.value.message


@pytest.mark.parametrize("file", ["trace.jsonl", "-", "/a/b", "a:b", "C:/x", "://", "./http://h"])
def test_files_are_no_urls(file: str) -> None:
    assert not is_url(file)


@given(st.text(), st.sampled_from(["", "ab", "/"]))
def test_any_text_is_an_address_or_refused(text: str, trace_id: str) -> None:
    for each in (text, f"http://{text}", f"http://h/{text}"):
        with suppress(InvalidArgumentError):
            assert query_url(each, trace_id).lower().startswith(("http://", "https://"))

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from services.cli import verdict
from services.cli.exit_codes import NEGATIVE, OK, UNREACHABLE, USAGE
from services.cli.main import app
from services.handshake import events
from tests.support.documents import check_output
from tests.support.handshake_traces import TOKEN, TRACE, VM, change, record, to_otlp, without, wsl2
from tests.support.http_server import Answer, serving
from tests.support.trace_formats import FORMATS, packed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.handshake_traces import Steps

RUNNER = CliRunner()
UNUSED = (events.FIRST_REQUEST, events.DEVICE_REMOVED, events.VM_TERMINATED)
OTHER = {events.POOL_BASE: 0x1000}


def handshake(*left_out: str) -> Steps:
    """A handshake with one share, without the events that are left out."""
    steps = without(wsl2(), *left_out)
    return [step for step in steps if not step[0].endswith(("eth0", "loopback0"))]


def failures(report: Path) -> list[str | None]:
    """The failures in a JUnit file."""
    root = ElementTree.fromstring(report.read_bytes())
    return [failure.get("type") for failure in root.iter("failure")]


def otlp(steps: Steps) -> str:
    return to_otlp(record(steps))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(otlp(handshake()))
    return file


def test_a_valid_handshake_is_0(trace: Path) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace)])
    assert result.exit_code == OK, result.output
    assert result.stdout.splitlines()[1].split() == [VM, "WSL2", TOKEN, "1", "valid"]
    assert result.stderr == ""


def test_a_broken_rule_is_1_and_named(trace: Path) -> None:
    trace.write_text(otlp(change(handshake(), events.APERTURE_CREATED, OTHER)))
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace)])
    assert result.exit_code == NEGATIVE
    assert "APERTURE_MISMATCH" in result.stdout
    assert f"{VM}: APERTURE_MISMATCH: " in result.stderr


def test_the_verdict_as_json(trace: Path) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert document["handshake"] == "valid"
    (vm,) = document["vms"]
    assert (vm["vm_id"], vm["valid"], vm["token"], vm["devices"]) == (VM, True, TOKEN, 1)

    trace.write_text(otlp(handshake(*UNUSED)))
    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(trace)])
    assert result.exit_code == NEGATIVE
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert document["handshake"] == "FIRST_REQUEST_MISSING"
    assert document["vms"][0]["violations"][0]["rule"] == "FIRST_REQUEST_MISSING"


def test_a_device_may_be_declared_idle(trace: Path) -> None:
    trace.write_text(otlp(handshake(*UNUSED)))
    result = RUNNER.invoke(app, ["handshake", "verify", "--idle", "src", str(trace)])
    assert result.exit_code == OK, result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"garbage\n", "TRACE_SYNTAX"),
        (b"{}", "TRACE_SYNTAX"),
        (b"\x1f\x8b\x08", "TRACE_SYNTAX"),
        (b"\xff\xfe\n", "TRACE_SYNTAX"),
        (b'{"resourceSpans": 7}\n', "TRACE_SYNTAX"),
    ],
)
def test_a_file_that_is_no_trace_is_2(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_bytes(content)
    result = RUNNER.invoke(app, ["handshake", "verify", str(file)])
    assert result.exit_code == USAGE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize("content", [b"", b"\n", b'{"resourceSpans": []}\n', b'{"batches": []}'])
def test_a_missing_trace_is_1(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_bytes(content)
    report = tmp_path / "junit.xml"
    result = RUNNER.invoke(app, ["handshake", "verify", str(file), "--junit", str(report)])
    assert result.exit_code == NEGATIVE
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the trace has no event of any VM")
    assert line.endswith("[TRACE_WITHOUT_VM]")
    assert failures(report) == ["TRACE_WITHOUT_VM"]

    result = RUNNER.invoke(app, ["handshake", "verify", "--json", str(file)])
    assert result.exit_code == NEGATIVE
    document = json.loads(result.stdout)
    check_output(("handshake", "verify"), document)
    assert (document["handshake"], document["vms"]) == ("TRACE_WITHOUT_VM", [])


@pytest.mark.parametrize("file", ["/nowhere/trace.jsonl", "/"])
def test_a_file_that_cannot_be_read_is_2(file: str) -> None:
    result = RUNNER.invoke(app, ["handshake", "verify", file])
    assert result.exit_code == USAGE
    (line,) = result.stderr.splitlines()
    assert file in line


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_closes_the_pipe_is_no_error(trace: Path, flags: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "services.cli.main", "handshake", "verify", str(trace), *flags],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stderr) == (OK, "")


@pytest.fixture(autouse=True)
def no_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GITHUB_ACTIONS", "PORTHOLE_TRACE_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def test_the_files_of_several_processes_are_judged_together(tmp_path: Path) -> None:
    lines = otlp(wsl2()).splitlines(keepends=True)
    files = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for number, file in enumerate(files):
        file.write_text("".join(lines[number::3]))
    names = [str(file) for file in files]
    assert RUNNER.invoke(app, ["handshake", "verify", names[0]]).exit_code == NEGATIVE
    result = RUNNER.invoke(app, ["handshake", "verify", *names])
    assert result.exit_code == OK, result.output
    assert result.stdout.splitlines()[1].split()[0] == VM
    # A copy, and a file that is named twice, change nothing.
    copy = tmp_path / "copy.json.gz"
    copy.write_bytes(packed(FORMATS["otlp_document"](record(wsl2()))))
    result = RUNNER.invoke(app, ["handshake", "verify", *names, names[1]])
    assert result.exit_code == OK, result.output
    result = RUNNER.invoke(app, ["handshake", "verify", str(copy), str(copy), "--expect", "1"])
    assert result.exit_code == OK, result.output


@pytest.mark.parametrize("form", ["otlp_lines", "jaeger", "tempo_2"])
@pytest.mark.parametrize("pack", [packed, str.encode], ids=["gzip", "plain"])
def test_the_standard_input_is_read(form: str, pack: Callable[[str], bytes]) -> None:
    for steps, code in ((wsl2(), OK), (without(wsl2(), events.POOL_LATCHED), NEGATIVE)):
        result = subprocess.run(
            [sys.executable, "-m", "services.cli.main", "handshake", "verify", "-"],
            input=pack(FORMATS[form](record(steps))),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == code, result.stderr


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "TRACE_LIMIT_BYTES", 1 << 20)
    bomb = tmp_path / "bomb"
    bomb.write_bytes(packed("\0" * (64 << 20)))
    result = RUNNER.invoke(app, ["handshake", "verify", str(bomb)])
    assert result.exit_code == USAGE
    assert f"{bomb} is longer than 1048576 bytes when it is unpacked; all inputs" in result.stderr
    assert result.stderr.endswith("[INPUT_TOO_LARGE]\n")


def test_all_inputs_share_one_bound(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = trace.read_text()
    monkeypatch.setattr(verdict, "TRACE_LIMIT_BYTES", len(text) + 10)
    other = tmp_path / "other"
    other.write_text(" " * 11)
    assert RUNNER.invoke(app, ["handshake", "verify", str(trace)]).exit_code == OK
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace), str(other)])
    assert result.exit_code == USAGE
    assert "INPUT_TOO_LARGE" in result.stderr


def test_the_traces_of_a_server_are_judged(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    recorded = record(wsl2())
    half = wsl2()[:2]
    with serving(
        {
            f"/api/traces/{TRACE}?raw=true": Answer(FORMATS["jaeger"](recorded).encode()),
            "/api/v2/traces/1": Answer(FORMATS["tempo_2"](record(half)).encode()),
            f"/api/v1/vms/{VM}/trace": Answer(packed(otlp(wsl2()))),
            "/empty": Answer(b'{"data": []}'),
        }
    ) as server:

        def verify(*arguments: str) -> tuple[int, str]:
            result = RUNNER.invoke(app, ["handshake", "verify", *arguments])
            return result.exit_code, result.stderr

        assert verify(f"{server.url}/trace/{TRACE}") == (OK, "")
        assert verify(server.url, "--trace-id", TRACE) == (OK, "")
        assert verify(f"{server.url}/vm/{VM}") == (OK, "")
        part = f"{server.url}/api/v2/traces/1"
        code, said = verify(part)
        assert code == NEGATIVE
        assert "CAPABILITIES_MISSING" in said
        assert verify(part, f"{server.url}/trace/{TRACE}") == (OK, "")
        assert verify(f"{server.url}/empty")[0] == NEGATIVE
        code, said = verify(f"{server.url}/trace/abc", "--junit", str(report))
        assert code == NEGATIVE
        assert "the server has no such trace" in said
        assert failures(report) == ["TRACE_NOT_FOUND"]
        assert verify(server.url)[0] == USAGE
    code, said = verify(f"{server.url}/trace/{TRACE}", "--junit", str(report))
    assert code == UNREACHABLE
    assert said.endswith("[INPUT_UNREACHABLE]\n")
    assert failures(report) == ["INPUT_UNREACHABLE"]


def test_a_vm_that_must_be_there(trace: Path) -> None:
    def verify(*arguments: str) -> tuple[int, str]:
        result = RUNNER.invoke(app, ["handshake", "verify", str(trace), *arguments])
        return result.exit_code, result.stderr

    assert verify("--vm", VM, "--expect", "1") == (OK, "")
    code, said = verify("--vm", "other", "--vm", VM)
    assert code == NEGATIVE
    assert f"no event of VM other; it has {VM} [TRACE_WITHOUT_VM]" in said
    code, said = verify("--expect", "2")
    assert code == NEGATIVE
    assert f"the trace has 1 VMs, and 2 are expected; it has {VM} [TRACE_VM_COUNT]" in said
    assert verify("--expect", "0")[0] == USAGE


def test_only_the_vms_that_are_named_are_judged(trace: Path, tmp_path: Path) -> None:
    broken = change(handshake(), events.APERTURE_CREATED, OTHER)
    other = tmp_path / "other.jsonl"
    other.write_text(otlp(broken).replace(VM, VM[::-1]).replace(TRACE, TRACE[::-1]))
    both = ["handshake", "verify", str(trace), str(other)]
    assert RUNNER.invoke(app, both).exit_code == NEGATIVE
    assert RUNNER.invoke(app, [*both, "--vm", VM]).exit_code == OK
    assert RUNNER.invoke(app, [*both, "--vm", VM[::-1]]).exit_code == NEGATIVE


def test_the_verdict_as_junit(trace: Path, tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    arguments = ["handshake", "verify", str(trace), "--junit", str(report)]
    assert RUNNER.invoke(app, arguments).exit_code == OK
    assert failures(report) == []
    trace.write_text(otlp(change(handshake(), events.APERTURE_CREATED, OTHER)))
    assert RUNNER.invoke(app, arguments).exit_code == NEGATIVE
    assert failures(report) == ["APERTURE_MISMATCH"]
    trace.unlink()
    assert RUNNER.invoke(app, arguments).exit_code == USAGE
    assert failures(report) == ["INPUT_UNREADABLE"]
    result = RUNNER.invoke(app, [*arguments[:-1], str(tmp_path / "nowhere" / "x")])
    assert result.exit_code == USAGE
    assert "nowhere" in result.stderr


@pytest.mark.parametrize(
    ("variable", "flags", "annotated"),
    [
        ("", [], False),
        ("false", [], False),
        ("true", [], True),
        ("true", ["--no-github"], False),
        ("", ["--github"], True),
        ("true", ["--json"], True),
    ],
)
def test_annotations_of_github(
    trace: Path, monkeypatch: pytest.MonkeyPatch, variable: str, flags: list[str], annotated: bool
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", variable)
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace), *flags])
    assert "::error" not in result.output
    trace.write_text(otlp(change(handshake(), events.APERTURE_CREATED, OTHER)))
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace), *flags])
    assert result.exit_code == NEGATIVE
    assert "::error" not in result.stdout
    prefix = f"::error title=handshake APERTURE_MISMATCH::VM {VM}: "
    assert any(line.startswith(prefix) for line in result.stderr.splitlines()) == annotated


def test_no_text_of_a_trace_is_a_line_of_output(trace: Path) -> None:
    hostile = "::error::a\n::add-mask::b ##[error]c\x1b[31m"
    trace.write_text(otlp(handshake()).replace(VM, json.dumps(hostile)[1:-1]))
    result = RUNNER.invoke(app, ["handshake", "verify", str(trace), "--github"])
    assert result.exit_code == NEGATIVE
    commands = [line for line in result.output.splitlines() if line.lstrip().startswith("::")]
    assert all(line.startswith("::error title=handshake ") for line in commands)
    assert "##[" not in "".join(line for line in result.output.splitlines() if line not in commands)
    assert "\x1b[31m" not in result.output

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from services.cli.annotations import annotation_lines, inert
from services.handshake.trace.checker import Violation, VmVerdict
from tests.unit.cli.test_junit import BAD, GOOD

COMMAND = re.compile(r"::error title=([^:,\n]*)::([^\n]*)")


def decoded(line: str) -> tuple[str, str]:
    """What the runner makes of a line (actions/runner, ActionCommand)."""
    match = COMMAND.fullmatch(line)
    assert match, line
    title, message = match.groups()
    for code, char in (("%3A", ":"), ("%2C", ","), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        title = title.replace(code, char)
        if code not in ("%3A", "%2C"):
            message = message.replace(code, char)
    return title, message


def test_each_broken_rule_of_a_vm_is_one_annotation() -> None:
    assert list(map(decoded, annotation_lines([GOOD, BAD], None))) == [
        ("handshake TOKEN_MISSING", "VM vm-2: device a has none\ndevice b has none"),
        ("handshake ORDER_POOL", "VM vm-2: too <early> & late"),
    ]


def test_what_keeps_a_trace_from_being_judged_is_an_annotation() -> None:
    [line] = annotation_lines([], ("TRACE_WITHOUT_VM", "100%: nothing"))
    assert line == "::error title=handshake TRACE_WITHOUT_VM::100%25: nothing"


def test_no_text_of_a_guest_ends_a_line() -> None:
    hostile = VmVerdict("v\n::stop", "", "", 0, (Violation("A,b:c", "d\r\n::add-mask::e\x1b"),))
    [line] = annotation_lines([hostile], None)
    assert line == ("::error title=handshake A%2Cb%3Ac::VM v%0A::stop: d\\r%0A::add-mask::e\\x1b")


@given(st.text(), st.text())
def test_any_text_is_one_line(title: str, message: str) -> None:
    for line in annotation_lines([], (title, message)):
        assert len(line.splitlines()) == 1
        assert COMMAND.fullmatch(line)


def test_text_of_others_is_no_command() -> None:
    assert inert("a: b::c") == "a: b::c"
    assert inert("::error::x") == "\\::error::x"
    assert inert(" ::error::x") == "\\ ::error::x"
    assert "##[" not in inert("x ##[error]y")

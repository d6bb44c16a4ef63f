from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from services.cli.junit import junit_xml
from services.handshake.trace.checker import Violation, VmVerdict

GOOD = VmVerdict("vm-1", "WSL2", "", 3, ())
BAD = VmVerdict(
    "vm-2",
    "WSLC",
    "",
    1,
    (
        Violation("TOKEN_MISSING", "device a has none"),
        Violation("ORDER_POOL", "too <early> & late"),
        Violation("TOKEN_MISSING", "device b has none"),
    ),
)


def test_a_valid_vm_is_a_passed_test_and_a_broken_rule_a_failed_one() -> None:
    root = ElementTree.fromstring(junit_xml([GOOD, BAD], None))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    good, bad = root
    assert good.attrib == {
        "name": "VM vm-1",
        "tests": "1",
        "failures": "0",
        "errors": "0",
        "time": "0",
    }
    [passed] = good
    assert (passed.get("classname"), passed.get("name"), len(passed)) == (
        "handshake.vm-1",
        "valid",
        0,
    )
    assert [case.get("name") for case in bad] == ["TOKEN_MISSING", "ORDER_POOL"]
    [failure] = bad[0]
    assert failure.tag == "failure"
    assert failure.attrib == {"type": "TOKEN_MISSING", "message": "device a has none"}
    assert failure.text == "device a has none\ndevice b has none"
    assert bad[1][0].text == "too <early> & late"


def test_what_keeps_a_trace_from_being_judged_is_a_failed_test() -> None:
    root = ElementTree.fromstring(junit_xml([], ("TRACE_WITHOUT_VM", "no event of any VM")))
    assert (root.get("tests"), root.get("failures")) == ("1", "1")
    [[case]] = root
    assert case[0].attrib == {"type": "TRACE_WITHOUT_VM", "message": "no event of any VM"}


def test_a_wrong_number_of_vms_stands_beside_their_verdicts() -> None:
    root = ElementTree.fromstring(junit_xml([GOOD], ("TRACE_VM_COUNT", "1, not 2")))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")


def test_what_xml_does_not_have_is_written_out() -> None:
    text = junit_xml([VmVerdict("a\x00\x1b[31m\ud800\ufffe", "", "", 0, ())], None)
    [suite] = ElementTree.fromstring(text.encode())
    assert suite.get("name") == "VM a\\x00\\x1b[31m\\ud800\\ufffe"


@given(st.text(st.characters(exclude_categories=())), st.text(), st.text())
def test_any_text_is_xml(vm_id: str, rule: str, detail: str) -> None:
    verdict = VmVerdict(vm_id, "", "", 0, (Violation(rule, detail),))
    ElementTree.fromstring(junit_xml([verdict], (rule, detail)).encode())

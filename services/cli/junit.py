"""Verdicts as JUnit XML, which CI systems show as tests.

A VM is a suite: one passed test when its handshake is valid, otherwise one failed test for each
broken rule. What keeps a trace from being judged is a failed test of a suite of its own, so a
missing trace is never an empty, green report. Must not know files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

from services.cli.verdict import details_by_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.handshake.trace.checker import VmVerdict

SUITE: Final = "porthole handshake verify"

# XML 1.0, section 2.2: what is no Char; also lone halves of characters.
_NO_CHARACTERS: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(verdicts: Sequence[VmVerdict], failure: tuple[str, str] | None) -> str:
    """Return a report.

    Args:
        verdicts: The verdicts on VMs.
        failure: Reason and message of what is wrong with the trace as a whole; None: nothing.
    """
    root = ElementTree.Element("testsuites", name=SUITE)
    if failure is not None:
        suite = ElementTree.SubElement(root, "testsuite", name=SUITE)
        _failed(suite, SUITE, "trace", *failure)
    for vm in verdicts:
        suite = ElementTree.SubElement(root, "testsuite", name=_text(f"VM {vm.vm_id}"))
        classname = f"handshake.{vm.vm_id}"
        for rule, details in details_by_rule(vm).items():
            _failed(suite, classname, rule, rule, "\n".join(details))
        if vm.valid:
            _case(suite, classname, "valid")
    for element in (*root, root):
        element.set("tests", str(len(element.findall(".//testcase"))))
        element.set("failures", str(len(element.findall(".//failure"))))
        element.set("errors", "0")
        element.set("time", "0")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _failed(
    suite: ElementTree.Element, classname: str, name: str, reason: str, message: str
) -> None:
    failure = ElementTree.SubElement(
        _case(suite, classname, name),
        "failure",
        type=_text(reason),
        message=_text(message.split("\n")[0]),
    )
    failure.text = _text(message)


def _case(suite: ElementTree.Element, classname: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=_text(classname), name=_text(name), time="0"
    )


def _text(text: str) -> str:
    """Write out characters that XML does not have: names come from guests."""
    return _NO_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)

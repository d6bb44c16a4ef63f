"""The documents have all that the code has: reasons, rules, exit codes and decisions."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.cli import exit_codes
from services.handshake.trace_rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
PUBLIC = (
    *("handshake", "rpc", "vm_owner", "session", "cli"),
    *("devicehost/host", "devicehost/memory"),
)
RAISED = re.compile(r"(\w+Error|refuse|Refusal)$")
# Reasons for a vhost-user front-end, which no caller of an API gets.
OF_THE_DATA_PLANE = {
    *("MAPPING_FAILED", "MAPPING_UNALIGNED"),
    *("REGION_BOUNDS", "REGION_FILE_TOO_SHORT", "REGION_LIMIT", "REGION_NOT_SEALED"),
    *("REGION_CLOSED", "REGION_OVERLAP"),
    *("REGION_UNALIGNED", "REGION_UNKNOWN"),
}


def reasons() -> Iterator[str]:
    for package in PUBLIC:
        for file in (ROOT / "services" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                first = node.args[0]
                if RAISED.search(name) and isinstance(first, ast.Constant):
                    yield str(first.value)


def test_every_reason_that_a_caller_can_meet_is_documented() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    found = {reason for reason in reasons() if re.fullmatch(r"[A-Z][A-Z0-9_]+", reason)}
    assert len(found) > 50
    documented = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text))
    assert found - documented - OF_THE_DATA_PLANE == set()


def test_every_rule_of_the_checker_is_documented() -> None:
    text = (ROOT / "docs" / "handshake.md").read_text()
    assert [rule for rule in RULES if f"`{rule}`" not in text] == []


def test_the_readme_has_every_exit_code() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper()}
    codes = {code for code in codes if isinstance(code, int)}
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {int(row) for row in rows} == codes


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    pages = sorted(path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert re.findall(r"\(([^)]+\.md)\)", index) == pages
    assert len({name[:4] for name in pages}) == len(pages)


@pytest.mark.parametrize(
    "file",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", file.read_text())  # code is not a link, even with "](" in it
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [target for target in targets if not (file.parent / target).exists()] == []

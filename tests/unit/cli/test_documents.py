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
SERVICES = ROOT / "services"
REASON = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
# These refuse a vhost-user front-end or a guest's driver, and no caller of an API.
DATA_PLANE = tuple(
    SERVICES / "devicehost" / package for package in ("vhost_user", "virtio", "fastpath")
)
OF_THE_DATA_PLANE = {
    *("ADDRESS_OUT_OF_BOUNDS", "MAPPING_FAILED", "MAPPING_UNALIGNED"),
    *("REGION_BOUNDS", "REGION_FILE_TOO_SHORT", "REGION_LIMIT", "REGION_NOT_SEALED"),
    *("REGION_CLOSED", "REGION_OVERLAP"),
    *("REGION_UNALIGNED", "REGION_UNKNOWN"),
}
# Only a mistake of code in the same process causes these.
OF_MISTAKES = {
    *("BUFFER_EMPTY", "CHAIN_LENGTH", "FRAME_LENGTH", "GPA_OUTSIDE_RAM", "MAPPING_TOO_LONG"),
    *("NO_FRAME", "RECEIVE_BUFFERS", "SOCKET_MISSING"),
}
# Other words in upper case: a status, variables, names in modules, a verdict.
NO_REASONS = {
    *("DEADLINE_EXCEEDED", "IDLE_TAGS", "RTA_DST", "TRACE_MISSING", "XDG_RUNTIME_DIR"),
    *("PORTHOLE_OWNER", "PORTHOLE_RUN_DIR", "PORTHOLE_TRACE_FILE"),
}


def modules_that_refuse() -> Iterator[tuple[Path, ast.Module]]:
    for file in SERVICES.rglob("*.py"):
        module = ast.parse(file.read_text())
        imported = {node.module for node in ast.walk(module) if isinstance(node, ast.ImportFrom)}
        if "services.handshake.errors" in imported:
            yield file, module


def words_of(module: ast.Module) -> set[str]:
    constants = (node.value for node in ast.walk(module) if isinstance(node, ast.Constant))
    return {word for word in constants if isinstance(word, str) and REASON.fullmatch(word)}


def documented_reasons() -> set[str]:
    rows = (ROOT / "docs" / "errors.md").read_text().splitlines()
    cells = (row.partition(" | ")[0] for row in rows if row.startswith("| "))
    return {word for cell in cells for word in REASON.findall(cell)}


def test_every_reason_that_a_caller_can_meet_is_documented() -> None:
    found = {
        word
        for file, module in modules_that_refuse()
        if not any(file.is_relative_to(package) for package in DATA_PLANE)
        for word in words_of(module)
    }
    others = OF_THE_DATA_PLANE | OF_MISTAKES | NO_REASONS
    assert others <= found
    assert found - others - documented_reasons() == set()


def test_every_documented_reason_is_one_of_the_code() -> None:
    found = {word for _, module in modules_that_refuse() for word in words_of(module)}
    assert documented_reasons() - found == set()


def test_every_rule_of_the_checker_is_documented() -> None:
    text = (ROOT / "docs" / "handshake.md").read_text()
    assert [rule for rule in RULES if f"`{rule}`" not in text] == []


def test_every_cited_section_of_the_handshake_exists() -> None:
    text = (ROOT / "docs" / "handshake.md").read_text()
    numbers = re.findall(r"^## (\d+)\. ", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    cited = {
        (str(file.relative_to(ROOT)), number)
        for folder in ("services", "tests")
        for file in (ROOT / folder).rglob("*.*")
        if file.suffix in (".py", ".toml")
        for number in re.findall(r"handshake\.md\s+section\s+(\d+)", file.read_text())
    }
    assert len(cited) > 10
    assert {(file, number) for file, number in cited if number not in numbers} == set()


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

"""The documents have all that the code has: rules, exit codes and decisions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.cli import exit_codes
from services.handshake.trace.table import RULES

ROOT = Path(__file__).parents[3]


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

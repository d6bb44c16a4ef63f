"""The files of the page: what a content security policy and a reader of the code expect of them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "services" / "dashboard" / "page"
FORBIDDEN = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "srcdoc",
    "eval(",
    "new Function",
    "createContextualFragment",
    "DOMParser",
    'setAttribute("style"',
)


def test_no_module_makes_markup_of_text() -> None:
    for module in PAGE.glob("*.js"):
        text = module.read_text()
        assert [each for each in FORBIDDEN if each in text] == [], module.name


def test_the_document_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    document = (PAGE / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", document) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", document) == []
    assert re.findall(r"https?://", document) == []
    for file in re.findall(r'"/page/([^"]+)"', document):
        assert (PAGE / file).is_file(), file
    assert "http" not in (PAGE / "style.css").read_text()


def test_every_import_is_there_and_every_module_is_used() -> None:
    imported = {"main.js"}
    for module in PAGE.glob("*.js"):
        names = re.findall(r'from "\./([^"]+)"', module.read_text())
        assert [name for name in names if not (PAGE / name).is_file()] == [], module.name
        imported.update(names)
    assert {module.name for module in PAGE.glob("*.js")} == imported


def test_all_modules_are_asked_for_at_once() -> None:
    document = (PAGE / "index.html").read_text()
    early = re.findall(r'<link rel="modulepreload" href="/page/([^"]+)">', document)
    # The colours come before all that is shown.
    assert sorted([*early, "theme.js"]) == sorted(module.name for module in PAGE.glob("*.js"))


def test_every_module_says_what_it_owns() -> None:
    assert [each.name for each in PAGE.glob("*.js") if not each.read_text().startswith("/* ")] == []


def test_every_class_of_a_rule_is_used() -> None:
    sheet = re.sub(r"/\*.*?\*/", "", (PAGE / "style.css").read_text(), flags=re.DOTALL)
    code = "".join(each.read_text() for each in (*PAGE.glob("*.js"), PAGE / "index.html"))
    selectors = re.findall(r"([^{}]+)\{", sheet)
    classes = {name for each in selectors for name in re.findall(r"\.([a-z][a-z-]*)", each)}
    assert sorted(name for name in classes if not re.search(rf"\b{name}\b", code)) == []

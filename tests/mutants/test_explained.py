"""The explanations in docs/mutants.md: each names code that is there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.mutants.__main__ import DOCUMENT, REPOSITORY
from tests.mutants.explained import Explanation, as_row, read_explanations
from tests.mutants.packages import package_of
from tests.mutants.survivors import Survivor, find_function

ROW = "| `Class.method` | `a \\| b → a` | It is so. |"
DROPPED = Survivor("services/x.py", 7, "Class.method", "a | b → a", "survived")


def test_a_survivor_is_explained_by_its_row_wherever_its_line_is() -> None:
    (read,) = read_explanations(f"## `services/x.py`\n\n{ROW}\n")
    assert read == Explanation("services/x.py", "Class.method", "a | b → a", "It is so.")
    assert read.covers(DROPPED)
    assert as_row(DROPPED).replace("…", "It is so.") == ROW


def test_a_row_may_explain_all_mutants_of_a_function() -> None:
    (read,) = read_explanations("## `services/x.py`\n| `Class.method` | any | It is so. |\n")
    assert read.covers(DROPPED)
    assert not Explanation("services/x.py", "other", None, "").covers(DROPPED)
    assert not Explanation("services/y.py", "Class.method", None, "").covers(DROPPED)


@pytest.mark.parametrize("row", ["| `f` | a → b | why |", "| `f` | `a → b` |", "| `f` | `a` | |"])
def test_a_row_without_a_form_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match=r"a row of services/x\.py"):
        read_explanations(f"## `services/x.py`\n{row}\n")


@pytest.mark.parametrize(
    "explanation", read_explanations(DOCUMENT.read_text()), ids=lambda each: each.function
)
def test_an_explained_mutant_is_one_of_code_that_is_there(explanation: Explanation) -> None:
    package_of(explanation.path)
    source = (REPOSITORY / explanation.path).read_text()
    function = ast.get_source_segment(
        source, find_function(ast.parse(source), explanation.function)
    )
    assert function is not None
    if explanation.change is not None:
        before = explanation.change.partition("→")[0].strip()
        assert before in re.sub(r"\s+", " ", function)

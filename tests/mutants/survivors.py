"""The mutants that no test killed, read from the folder in which mutmut worked.

Owns reading mutmut's files, finding the line of a survivor, and deciding whether it changes only
text for people. Must not know which survivors are explained.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_SURVIVED: Final = {0: "survived", 5: "no test reaches it", 33: "no test reaches it"}
"""mutmut's exit codes of a surviving mutant. A mutant that was not run has None."""
_TIMED_OUT: Final = {36, 24, -24, 152, 255}
"""mutmut's exit codes of a mutant whose tests did not end: its own limit, or SIGXCPU."""
_SENTENCE: Final = re.compile(r"[A-Za-z].* |.* [A-Za-z]", re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class Survivor:
    """A change of the code that no test noticed.

    Attributes:
        path: The module, from the top of the repository.
        line: Line at which the changed code begins.
        function: The function or "Class.method".
        change: The lines taken out and put in, as `before → after`; never a line number.
        how: The run's verdict: it survived, or no test reaches it.
    """

    path: str
    line: int
    function: str
    change: str
    how: str


@dataclass(slots=True)
class Outcome:
    """The results of a run.

    Attributes:
        survivors: The survivors that change more than text for people.
        wording: Number of further survivors, which change only such text.
        counts: Number of mutants that were killed, timed out, lived, and were not run.
    """

    survivors: list[Survivor]
    wording: int
    counts: Counter[str]


def read_outcome(scratch: Path) -> Outcome:
    """Read the results that mutmut left in `scratch`."""
    outcome = Outcome([], 0, Counter())
    with contextlib.chdir(scratch):
        for meta in sorted(Path("mutants").rglob("*.py.meta")):
            source = meta.relative_to("mutants").with_suffix("")
            codes = json.loads(meta.read_text())["exit_code_by_key"]
            outcome.counts.update(_fate(code) for code in codes.values())
            lived = {name: code for name, code in codes.items() if code in _SURVIVED}
            for name, code in lived.items():
                before, after = _functions(name, source)
                if _words_masked(before) == _words_masked(after):
                    outcome.wording += 1
                else:
                    outcome.survivors.append(_survivor(source, name, before, after, code))
    outcome.survivors.sort()
    return outcome


def read_alive(scratch: Path) -> list[str]:
    """Return the names of the mutants that the last run in `scratch` did not kill.

    One that timed out is among them: a busy machine may have been the reason.
    """
    return [
        name
        for meta in sorted((scratch / "mutants").rglob("*.py.meta"))
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items()
        if _fate(code) != "killed"
    ]


def _fate(code: int | None) -> str:
    if code is None:
        return "not run"
    return "lived" if code in _SURVIVED else "timed out" if code in _TIMED_OUT else "killed"


def _functions(mutant: str, source: Path) -> tuple[str, str]:
    import libcst
    from mutmut.mutation.diff_apply import read_functions_from_index

    functions = read_functions_from_index(mutant, source)
    if functions is None:
        raise RuntimeError(f"{mutant} is not in what was generated for {source}")
    before, after = (str(libcst.Module([function]).code) for function in functions)
    return before, after


def _words_masked(function: str) -> str:
    """Dump a function's syntax tree, with every sentence replaced by an empty string.

    A string counts as a sentence when it has a letter and a space: a reason, a key or an option has
    no space.
    """
    tree = ast.parse(function)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _SENTENCE.search(node.value)
        ):
            node.value = ""
    return ast.dump(tree)


def _survivor(source: Path, mutant: str, before: str, after: str, code: int) -> Survivor:
    removed, added, offset = _changed_lines(before, after)
    name = mutant.rpartition(".")[2].partition("__mutmut_")[0]
    method = name.removeprefix("xǁ")
    function = name.removeprefix("x_") if method == name else method.replace("ǁ", ".")
    line = _line_of(source.read_text(), function, removed[0] if removed else "", offset)
    change = f"{' '.join(removed)} → {' '.join(added)}".strip()
    return Survivor(str(source), line, function, change, _SURVIVED[code])


def _changed_lines(before: str, after: str) -> tuple[list[str], list[str], int]:
    """Return the removed lines, the added lines, and the offset of the first change in lines."""
    old, new = before.strip().split("\n"), after.strip().split("\n")
    removed: list[str] = []
    added: list[str] = []
    first = None
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            first = a if first is None else first
            removed += [line.strip() for line in old[a:b]]
            added += [line.strip() for line in new[c:d]]
    return removed, added, first or 0


def _line_of(source: str, function: str, text: str, offset: int) -> int:
    """Return the line of a function that has `text`: of several, the nearest to `offset`."""
    lines = source.split("\n")
    node = find_function(ast.parse(source), function)
    last = node.end_lineno or node.lineno
    places = [n for n in range(node.lineno, last + 1) if lines[n - 1].strip() == text]
    return min(places, key=lambda n: abs(n - node.lineno - offset), default=node.lineno)


def find_function(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """Return the definition of a function or "Class.method" of a module.

    Raises:
        LookupError: There is none.
    """
    for qualified, node in _definitions(tree, ""):
        if qualified == name:
            return node
    raise LookupError(name)


def _definitions(
    tree: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")

"""Reading pytest's results of one round, and the report of all rounds."""

from __future__ import annotations

from pathlib import Path

from tests.flaky.__main__ import report
from tests.flaky.rounds import Round, read_cases, run_round

MODULE = """
import os

def test_passes():
    assert os.environ["PORTHOLE_SEED"] == "3"

def test_fails():
    raise AssertionError

def test_sleeps():
    import time
    time.sleep(60)
"""


def a_round(seed: int, *failed: str) -> Round:
    return Round(seed, frozenset(failed), 9, 0, 1.0, Path("log"))


def test_the_report_counts_each_test_and_names_its_seeds() -> None:
    rounds = [a_round(1, "a", "b"), a_round(2, "b"), a_round(3)]
    assert report(rounds) == "2 of 3  b  seeds: 1, 2\n1 of 3  a  seeds: 1"
    assert report(rounds[2:]) == "nothing failed in 1 rounds"


def test_a_test_that_fails_in_its_teardown_has_failed(tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(
        '<testsuites><testsuite><testcase file="t.py" name="one"/>'
        '<testcase file="t.py" name="one"><error/></testcase>'
        '<testcase file="t.py" name="two"><skipped/></testcase>'
        '<testcase file="t.py" name="three"><failure/></testcase></testsuite></testsuites>'
    )
    assert read_cases(results) == {
        "t.py::one": "failed",
        "t.py::two": "skipped",
        "t.py::three": "failed",
    }


def test_a_round_runs_tests_and_ends_in_time(tmp_path: Path) -> None:
    module = tmp_path / "test_module.py"
    module.write_text(MODULE)
    arguments = [str(module), f"--rootdir={tmp_path}", "-c/dev/null"]
    done = run_round(3, [*arguments, "-k", "not sleeps"], 120.0, tmp_path)
    assert (done.ran, set(done.failed)) == (2, {"test_module.py::test_fails"})
    stuck = run_round(3, [*arguments, "-k", "sleeps"], 0.5, tmp_path)
    [failed] = stuck.failed
    assert failed.startswith("(the run did not end in 0.5 s")

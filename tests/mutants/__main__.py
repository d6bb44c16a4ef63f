"""Changes the code of some packages in small ways, and lists the changes that no test notices.

Works on a copy in build/mutants. Fails when a survivor has no explanation in docs/mutants.md, or
when an explanation has no survivor.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.mutants.explained import as_row, read_explanations
from tests.mutants.packages import PACKAGES, package_of
from tests.mutants.survivors import read_alive, read_outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.mutants.packages import Package
    from tests.mutants.survivors import Outcome

REPOSITORY: Final = Path(__file__).parents[2]
SCRATCH: Final = REPOSITORY / "build" / "mutants"
DOCUMENT: Final = REPOSITORY / "docs" / "mutants.md"
_COPIED: Final = ("services", "clients", "protos", "tests", "docs", "native")
_STOP_S: Final = 30


def copy_tree(package: Package, modules: Sequence[str], *, again: bool) -> Path:
    """Copy the files that a run needs into a scratch folder, and configure mutmut there.

    Args:
        package: The package whose tests are run.
        modules: The folders or modules to mutate.
        again: Whether to keep the results of the last run; mutmut drops those of changed functions.
    """
    scratch = SCRATCH / package.name
    if not again:
        shutil.rmtree(scratch, ignore_errors=True)
    for folder in _COPIED:
        shutil.copytree(
            REPOSITORY / folder,
            scratch / folder,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    settings = {
        "source_paths": ["services"],
        "only_mutate": [m if m.endswith(".py") else f"{m}/*" for m in modules],
        "do_not_mutate": [f"{folder}/*" for folder in package.inner],
        "also_copy": list(_COPIED[1:]),
        "pytest_add_cli_args": [
            # mutmut runs pytest several times in one process, whose handler of SIGBUS is ours.
            *("-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "tests.mutants.garbage"),
            *(f"--ignore={path}" for path in package.left_out),
        ],
        "pytest_add_cli_args_test_selection": list(package.tests),
        "timeout_multiplier": 5.0,
        "timeout_constant": 1.0,
    }
    # Lists and numbers of JSON are those of TOML.
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    project = (REPOSITORY / "pyproject.toml").read_text()
    (scratch / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{lines}")
    return scratch


def run_mutmut(scratch: Path, mutants: Sequence[str], *, processes: int, seconds: float) -> bool:
    """Run mutants; return whether all of them were run.

    Args:
        scratch: The folder that `copy_tree` returned.
        mutants: Names of mutants, or patterns of names; none for all.
        processes: Number of mutants that are tested at a time.
        seconds: Time after which the run is stopped; its results so far stay.
    """
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run"]
    command += ["--max-children", str(processes), *mutants]
    with (scratch / "mutmut.log").open("wb") as log:
        run = subprocess.Popen(command, cwd=scratch, stdout=log, stderr=subprocess.STDOUT)
        try:
            failed = run.wait(seconds)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
            try:
                run.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            return False
    if failed:
        shown = (scratch / "mutmut.log").read_text(errors="replace").replace("\r", "\n")
        raise SystemExit(f"mutmut failed in {scratch}:\n{shown[-6000:]}")
    return True


def judge(package: Package, modules: Sequence[str], outcome: Outcome, *, complete: bool) -> bool:
    """Print survivors without explanation, and explanations without survivor.

    Args:
        package: The package of the modules.
        modules: The folders or modules that were mutated.
        outcome: The results of the run.
        complete: Whether every mutant was run. If not, an explanation without survivor is no error.

    Returns:
        Whether there are none.
    """
    explanations = [
        each
        for each in read_explanations(DOCUMENT.read_text())
        if package_of(each.path) is package
        and any(each.path == m or each.path.startswith(f"{m}/") for m in modules)
    ]
    open_ones = [s for s in outcome.survivors if not any(e.covers(s) for e in explanations)]
    for survivor in open_ones:
        print(f"{survivor.path}:{survivor.line}: {survivor.how}\n    {as_row(survivor)}")
    stale = [e for e in explanations if not any(e.covers(s) for s in outcome.survivors)]
    for each in stale if complete else ():
        print(f"{each.path}: `{each.function}`: explained, but it lives no more: {each.change}")
    counts = outcome.counts
    print(
        f"{counts['killed']} killed, {counts['timed out']} timed out, {counts['lived']} lived "
        f"({outcome.wording} of them change only a sentence, {len(open_ones)} are not explained), "
        f"{counts['not run']} not run"
    )
    return not open_ones and not (complete and stale)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when docs/mutants.md is not true, or a run did not end in time."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3600, help="for each package")
    parser.add_argument("--only", metavar="GLOB", help="mutants whose number ends so: [16]")
    parser.add_argument(
        "--again", action="store_true", help="only what the last run did not kill, with new tests"
    )
    parser.add_argument("modules", nargs="*", metavar="folder or module")
    chosen = parser.parse_args(arguments)
    by_package: dict[Package, list[str]] = {}
    for module in chosen.modules or [source for package in PACKAGES for source in package.sources]:
        by_package.setdefault(package_of(module), []).append(module)
    fine = True
    for package, modules in by_package.items():
        began = time.monotonic()
        pattern = f"*__mutmut_*{chosen.only or ''}"
        mutants = [pattern] if chosen.only else []
        if chosen.again:
            mutants = fnmatch.filter(read_alive(SCRATCH / package.name), pattern)
        scratch = copy_tree(package, modules, again=chosen.again)
        ended = run_mutmut(scratch, mutants, processes=chosen.processes, seconds=chosen.seconds)
        outcome = read_outcome(scratch)
        complete = outcome.counts["not run"] == 0
        print(f"\n{', '.join(modules)}: {time.monotonic() - began:.0f} s")
        fine = judge(package, modules, outcome, complete=complete) and fine
        if not ended:
            print(f"the run did not end in {chosen.seconds:.0f} s")
            fine = False
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

"""Fuzzes each target for some time, as many at once as there are CPUs, from the kept inputs.

An input that fails is added to the regressions, which the tests replay. New inputs that reach more
code are left in build/fuzz; with --keep the smallest set of them replaces the corpus.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fuzz.targets import BUILD, TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fuzz.targets import Target

MAX_INPUT_BYTES: Final = 4096
HANG_S: Final = 25
"""Seconds after which an input counts as a hang; longer than the 10 s after which the product
leaves a worker behind that does not stop."""
KEPT_INPUT_BYTES: Final = 512
_FIGURES: Final = re.compile(r"^#\d+\s+DONE\s+(cov: \d+).*$|^Done (\d+) runs", re.MULTILINE)


def fuzz(target: Target, seconds: int, *, keep: bool) -> bool:
    """Fuzz one target; return whether no input failed."""
    command = target.build()
    grown = BUILD / target.name / "corpus"
    found = BUILD / target.name / "found"
    for folder in (grown, found):
        folder.mkdir(parents=True, exist_ok=True)
    result = target.run(
        command,
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={HANG_S}",
        "-rss_limit_mb=4096",
        "-use_value_profile=1",
        "-artifact_prefix=found/",
        "corpus",
        *(str(kept) for kept in (target.corpus, target.regressions) if kept.is_dir()),
    )
    if result.returncode:
        print(result.stdout[-6000:])
        for path in found.iterdir():
            target.regressions.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target.regressions / path.name)
            print(f"{target.name}: kept {target.regressions / path.name}")
        return False
    figures = " ".join(
        filter(None, (part for match in _FIGURES.findall(result.stdout) for part in match))
    )
    print(f"{target.name}: {figures} runs in {seconds} s, nothing found", flush=True)
    if keep and not target.borrows:
        _keep(target, command)
    return True


def _keep(target: Target, command: list[str]) -> None:
    small = BUILD / target.name / "small"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir()
    kept = [str(target.corpus)] if target.corpus.is_dir() else []
    arguments = ("-set_cover_merge=1", f"-max_len={KEPT_INPUT_BYTES}", "small", "corpus", *kept)
    result = target.run(command, *arguments)
    if result.returncode:
        raise RuntimeError(f"{target.name}: no smallest set was found:\n{result.stdout[-6000:]}")
    shutil.rmtree(target.corpus, ignore_errors=True)
    shutil.copytree(small, target.corpus)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="seconds for each target")
    parser.add_argument("--keep", action="store_true", help="replace the corpus by the new inputs")
    parser.add_argument(
        "names", nargs="*", choices=[[], *(t.name for t in TARGETS)], metavar="target"
    )
    chosen = parser.parse_args(arguments)
    targets = [target for target in TARGETS if not chosen.names or target.name in chosen.names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        run = partial(fuzz, seconds=chosen.seconds, keep=chosen.keep)
        clean = list(pool.map(run, targets))
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())

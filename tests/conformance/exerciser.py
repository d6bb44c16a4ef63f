"""A process that works on a file or on trees, with random calls that a seed decides.

`file` checks the contents of its file all the time, like fsx. `tree` prints the result of each
call: with the same seed a plain directory must give the same results. In between it makes calls in
a directory that it shares with others, like fsstress: their results depend on the order.
`tree-of-host` is the same while some of the others work on the host.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from tests.conformance.file_exerciser import File
from tests.conformance.tree_exerciser import Tree

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
_TOLD_BYTES: Final = 8000


class Exerciser(subprocess.Popen[str]):
    """The process, from the outside."""

    def __init__(self, kind: str, seed: int, calls: int, *paths: Path) -> None:
        self._name = f"{kind} with seed {seed}, {calls} calls, on {', '.join(map(str, paths))}"
        super().__init__(
            [sys.executable, "-m", __name__, kind, str(seed), str(calls), *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        """Wait for it; returns its output.

        Raises:
            AssertionError: It found a wrong result.
        """
        printed, _ = self.communicate()
        assert self.returncode == 0, f"{self._name}:\n{printed[-_TOLD_BYTES:]}"
        return printed


def finish_all(running: dict[T, Exerciser]) -> dict[T, str]:
    """Wait for processes; returns the output of each. When one fails the others are ended.

    Raises:
        AssertionError: One found a wrong result.
    """
    with contextlib.ExitStack() as stack:
        for process in running.values():
            stack.enter_context(process)
            stack.callback(process.kill)
        return {key: process.finish() for key, process in running.items()}


def main() -> None:
    """Make the calls; the exit status is 0 if all results were right."""
    kind, seed, calls, *paths = sys.argv[1:]
    if kind == "file":
        (path,) = paths
        File(int(seed), path).run(int(calls))
        return
    own, common = (Tree(int(seed), path) for path in paths)
    allowed = Tree.HOST_RACES if kind == "tree-of-host" else Tree.RACES
    lines = []
    for _ in range(int(calls)):
        lines.append(own.step()[0])
        said, number = common.step()
        if number not in allowed:
            sys.exit(f"among others: {said}")
    print("\n".join(lines))  # at the end: nobody reads it before


if __name__ == "__main__":
    main()

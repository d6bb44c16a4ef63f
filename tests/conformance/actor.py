"""A process that makes file system calls as one user, for tests that compare their results.

Calls come pickled on standard input, each a list of words. Answers go pickled to standard output:
the name of an errno, or the result of the call. It is a process of its own because user, umask and
working directory belong to a process.
"""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.conformance.calls import GROUPS, Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Actor:
    """The process, from the outside."""

    def __init__(self, uid: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.actor", str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def call(self, *words: str | bytes) -> str:
        """Make one call; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump([os.fsencode(word) for word in words], self._process.stdin)
        self._process.stdin.flush()
        kind, answer = pickle.load(self._process.stdout)
        if kind != "answer":
            raise AssertionError(answer)
        return str(answer)

    def enter(self, directory: Path) -> None:
        """Go into a directory; files that are open are closed, the umask is 022."""
        assert self.call("enter", str(directory)) == "ok"

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(30)


def _answer(call: Callable[..., str | None], words: Sequence[bytes]) -> tuple[str, str]:
    try:
        return "answer", call(*words) or "ok"
    except OSError as error:
        return "answer", errno.errorcode[error.errno or 0]
    except Exception as error:
        return "mistake", f"{words!r}: {error!r}"


def main() -> None:
    """Become the user, then answer until standard input ends."""
    uid = int(sys.argv[1])
    calls = Calls()
    os.setgroups(GROUPS[uid])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    while True:
        try:
            name, *words = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_answer(getattr(calls, name.decode()), words), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

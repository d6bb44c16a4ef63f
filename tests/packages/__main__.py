"""Installs the wheel with the oldest dependencies it allows, and with other interpreters.

Each environment runs the tests of the wire and a small session of the command. An interpreter that
this machine lacks is named and left out; the exit code is 1 when anything fails.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from tests.packages.installation import build_wheel, install, run_tests, use_command
from tests.packages.interpreters import find

CASES: Final = (
    ("3.11", "requirements-lowest.lock"),
    ("3.12", "requirements.lock"),
    ("3.13", "requirements-lowest.lock"),
)
"""Interpreters and the locks that they are tested with; `make test` runs 3.11 with the newest."""


def main() -> int:
    """Run the command line."""
    wheel = build_wheel()
    for version, lock in CASES:
        python = find(version)
        if python is None:
            print(f"Python {version} was not found: the wheel is not tested with it", flush=True)
            continue
        began = time.monotonic()
        programs = install(wheel, f"python{version}", python, lock)
        use_command(programs)
        run_tests(programs)
        seconds = time.monotonic() - began
        print(f"Python {version} with {lock}: the wheel works, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

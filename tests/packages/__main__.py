"""Installs the wheels with the oldest dependencies they allow, and with other interpreters.

The client is imported alone. Each environment with both wheels runs the tests of the wire and a
small session of the command. An interpreter that this machine lacks is named and left out; the exit
code is 1 when anything fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from tests.packages.installation import (
    build_wheels,
    install,
    run_tests,
    use_client_alone,
    use_command,
)
from tests.packages.interpreters import find

CASES: Final = (
    ("3.11", "requirements-lowest.lock"),
    ("3.12", "requirements.lock"),
    ("3.13", "requirements-lowest.lock"),
)
"""Interpreters and the locks that they are tested with; `make test` runs 3.11 with the newest."""


def main() -> int:
    """Run the command line."""
    wheels = build_wheels()
    use_client_alone(wheels[0], Path(sys.executable))
    print("the client works alone", flush=True)
    for version, lock in CASES:
        python = find(version)
        if python is None:
            print(f"Python {version} was not found: the wheels are not tested with it", flush=True)
            continue
        began = time.monotonic()
        programs = install(wheels, f"python{version}", python, lock)
        use_command(programs)
        run_tests(programs)
        seconds = time.monotonic() - began
        print(f"Python {version} with {lock}: the wheels work, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

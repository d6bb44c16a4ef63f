"""Runs the vhost-user target under libFuzzer, which atheris provides for Python.

Takes libFuzzer's arguments. Makes the directory that the device shares in the present directory and
never removes it, because libFuzzer ends the process. Needs the packages that `make fuzz` installs.
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "services.devicehost",
        "services.wire",
    ]
):
    from tests.fuzz.reader import Reader
    from tests.fuzz.vhost_user import converse


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    logging.getLogger("services").setLevel(logging.ERROR)
    logging.getLogger("services").propagate = False
    shared_dir = Path("share").absolute()
    shared_dir.mkdir(exist_ok=True)
    # To find the smallest set of inputs, libFuzzer runs its first argument as a new process.
    again = Path("again").absolute()
    again.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.fuzz.guided "$@"\n')
    again.chmod(0o700)
    atheris.Setup([str(again), *sys.argv[1:]], lambda data: converse(Reader(data), shared_dir))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

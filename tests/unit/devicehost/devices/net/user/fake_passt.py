"""Programs in the place of passt, which a test writes: they take its arguments."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HELP = "--fd --map-host-loopback --dns-host --no-map-gw --pid"

_PROGRAM = """#!{python} -IS
import os, signal, socket, sys, time
if "--help" in sys.argv:
    print("{help}")
    sys.exit()
def value(option):
    return sys.argv[sys.argv.index(option) + 1]
def ready():
    assert stream.recv(64, socket.MSG_WAITALL)[:4] == b"\\0\\0\\0\\x3c"  # the guest's address
    with open(value("--pid"), "w") as file:
        file.write(str(os.getpid()))
stream = socket.socket(fileno=int(value("--fd")))
{body}
"""
ECHO = """
ready()
while data := stream.recv(1 << 20):
    stream.sendall(data)
"""
DEAF = """
ready()
signal.pause()
"""


def write(to: Path, body: str, *, help_text: str = HELP) -> str:
    """Write a program; returns its path."""
    to.write_text(_PROGRAM.format(python=sys.executable, help=help_text, body=body))
    to.chmod(0o755)
    return str(to)

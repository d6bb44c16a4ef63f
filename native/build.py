"""Builds the native fast path: a plain shared library, next to the module that loads it.

Used as hatchling's build hook and, by `make`, as a script. Without a C compiler, or if the library
does not build, the device host works without it: this module prints why, and no step fails.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY: Final = "services/devicehost/libfastpath.so"
_FLAGS: Final = ("-O2", "-g", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-fstack-protector-strong")


def build(root: Path) -> str:
    """Build the library of the project at `root`.

    Returns:
        Why there is none; empty when there is.
    """
    wanted = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    compiler = shlex.split(wanted or "")
    if not compiler:
        return "no C compiler (cc) was found"
    target = root / LIBRARY
    fresh = target.with_suffix(".new")
    sources = sorted(str(path) for path in (root / "native").glob("*.c"))
    command = [*compiler, f"@{root / 'compile_flags.txt'}", *_FLAGS, "-o", str(fresh), *sources]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{wanted} cannot be run: {error.strerror}"
    if result.returncode:
        return f"{wanted} failed:\n{result.stderr}"
    if result.stderr:
        print(result.stderr, file=sys.stderr)
    fresh.replace(target)  # at once: a process that has the old one mapped goes on with it
    return ""


class FastPathHook(BuildHookInterface[Any]):
    """Builds the library before a wheel, or an editable install, is made."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, and mark a wheel that contains it as one of this platform."""
        lack = build(Path(self.root))
        if lack:
            self.app.display_warning(f"Porthole without its native fast path: {lack}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
        build_data["artifacts"].append(LIBRARY)


if __name__ == "__main__":
    if reason := build(Path(__file__).resolve().parent.parent):
        print(f"porthole works without its native fast path: {reason}", file=sys.stderr)

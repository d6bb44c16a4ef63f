"""Finds the interpreters that the wheel is tested with.

Downloads none: which there are is a matter of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def find(version: str) -> Path | None:
    """Return an interpreter of a version, or None when the machine has none.

    Args:
        version: For instance "3.12".
    """
    candidates = [shutil.which(f"python{version}"), shutil.which("python3")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python3")), reverse=True)
    return next((Path(path) for path in candidates if path and version_of(path) == version), None)


def version_of(python: str) -> str:
    """Return major and minor version of an interpreter; empty when it does not run.

    A shim of pyenv exists for each version that is installed, and fails for one that is not chosen.
    """
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""

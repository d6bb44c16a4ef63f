"""The flags before a command's name, as typed. context.py gives them their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_WAIT_S: Final = 3.0
"""Longest wait for a service that is not up yet, by default."""


@dataclass(frozen=True, slots=True)
class RootFlags:
    """The root flags, which a command gets as `ctx.obj`. None: not given."""

    run_dir: Path | None = None
    owner: str | None = None
    trace_file: Path | None = None
    wait_s: float = DEFAULT_WAIT_S

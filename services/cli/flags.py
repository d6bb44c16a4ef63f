"""The flags before a command's name, as they were typed.

Must not know what they mean: a command that needs them asks context.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_WAIT_S: Final = 3.0
"""How long a command waits for a service that is not up yet."""


@dataclass(frozen=True, slots=True)
class RootFlags:
    """What the root group hands to a command as `ctx.obj`; None: not given."""

    run_dir: Path | None = None
    owner: str | None = None
    trace_file: Path | None = None
    wait_s: float = DEFAULT_WAIT_S

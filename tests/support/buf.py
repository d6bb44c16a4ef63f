"""buf, which `make check` installs where there is npm."""

from __future__ import annotations

from pathlib import Path

BUF = Path(__file__).resolve().parents[2] / "build" / "buf" / "node_modules" / ".bin" / "buf"

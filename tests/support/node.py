"""The packages of npm that the Node example needs; `make test` installs them where there is npm."""

from __future__ import annotations

from pathlib import Path

MODULES = Path(__file__).resolve().parents[2] / "build" / "node" / "node_modules"

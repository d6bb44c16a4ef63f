"""The browser of the tests: Debian's chromium, and axe-core, which `make test` gets from npm."""

from __future__ import annotations

from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "browser"

CHROMIUM = Path("/usr/bin/chromium")

AXE = BUILD / "node_modules" / "axe-core" / "axe.min.js"

SCREENSHOTS = BUILD / "screenshots"
"""Where the tests leave what they saw."""

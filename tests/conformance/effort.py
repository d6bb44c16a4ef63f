"""How long the tests with random calls run, and which calls: told from outside.

PORTHOLE_SOAK=<n> makes them n times as long; PORTHOLE_SEED=<number> chooses other calls. Without
them every run makes the same calls, and takes as long as CI can wait.
"""

from __future__ import annotations

import os
from typing import Final

SEED: Final = int(os.environ.get("PORTHOLE_SEED") or "1")
SCALE: Final = int(os.environ.get("PORTHOLE_SOAK") or "1")

"""The length and the seed of the tests with random calls, from the environment.

PORTHOLE_SOAK=<n> makes them n times as long; PORTHOLE_SEED=<number> chooses other calls. Without
these every run makes the same calls, for as long as CI can wait.
"""

from __future__ import annotations

import os
from typing import Final

SEED: Final = int(os.environ.get("PORTHOLE_SEED") or "1")
SCALE: Final = int(os.environ.get("PORTHOLE_SOAK") or "1")

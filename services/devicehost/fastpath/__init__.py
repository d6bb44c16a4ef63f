"""The native fast path: its library, loaded if it was built and matches Python's declarations.

Owns the decision whether the library is used. The library takes no Python objects and calls none;
ctypes releases the interpreter's lock for each call. Must not know what the library is used for.
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path
from typing import Final

from services.devicehost.fastpath.comparison import MismatchError, compare
from services.devicehost.fastpath.declarations import (
    DIRECTORY,
    FILE,
    FUNCTIONS,
    KEEP_ID,
    MAX_WATCHED,
    MOST_HELD,
    PYTHON,
    SLOT_SHIFT,
    TABLES,
    XATTR_NAME_MAX,
    IoVec,
    Outcome,
    PhChain,
    PhCost,
    PhCounters,
    PhMountSetup,
    PhNetOffloads,
    PhNetSetup,
    PhNetSource,
    PhNetState,
    PhPythonPin,
    PhQueueSetup,
    PhQueueState,
    PhRate,
    PhRateLimit,
    PhRules,
    PhSpan,
    PhStream,
)

__all__ = [
    "ACTIVE",
    "DIRECTORY",
    "FILE",
    "KEEP_ID",
    "MAX_WATCHED",
    "MOST_HELD",
    "PYTHON",
    "SLOT_SHIFT",
    "SWITCH",
    "XATTR_NAME_MAX",
    "IoVec",
    "Outcome",
    "PhChain",
    "PhCost",
    "PhCounters",
    "PhMountSetup",
    "PhNetOffloads",
    "PhNetSetup",
    "PhNetSource",
    "PhNetState",
    "PhPythonPin",
    "PhQueueSetup",
    "PhQueueState",
    "PhRate",
    "PhRateLimit",
    "PhRules",
    "PhSpan",
    "PhStream",
    "library",
    "load",
    "status",
]

_LOG = logging.getLogger(__name__)

SWITCH: Final = "PORTHOLE_NATIVE"
"""Environment variable; "0" leaves the library alone."""

ACTIVE: Final = "active"
"""The value of `status` when the library serves."""


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """Load a library.

    Returns:
        The library, or None if it cannot be used; and the value of `status`.
    """
    if os.environ.get(SWITCH) == "0":
        return None, f"off: {SWITCH} is 0"
    if not path.exists():
        return None, "absent: it was not built, for want of a C compiler (cc)"
    try:
        library = ctypes.CDLL(str(path), use_errno=True)
        for name, row in TABLES.items():
            getattr(library, name).restype = ctypes.POINTER(row)
        compare(library)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError, MismatchError) as error:
        lack = f"{error}; build it again: make setup"
        _LOG.warning("the native fast path cannot be used: %s", lack)
        return None, f"unusable: {lack}"
    return library, ACTIVE


_loaded: Final = load(Path(__file__).parent.with_name("libfastpath.so"))

library: Final = _loaded[0]
"""The library; None when it was not built, does not fit, or is switched off."""

status: Final[str] = _loaded[1]
"""ACTIVE, or why the library is not used; for people."""

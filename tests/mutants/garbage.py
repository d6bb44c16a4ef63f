"""Collects garbage between tests instead of amid them: a pytest plugin for mutmut's runs.

While it records which tests reach a function, mutmut sets a ContextVar at each call. If the
collector interrupts that, and a finalizer such as `Descriptor.__del__` calls a recorded function,
CPython 3.11 goes on with what the inner call has freed: it raises LookupError, or crashes. Twenty
lines without any code of ours show it.
"""

from __future__ import annotations

import gc


def pytest_sessionstart() -> None:
    """Switch the collector off."""
    gc.disable()


def pytest_runtest_logfinish() -> None:
    """Collect what a test has left."""
    gc.collect()

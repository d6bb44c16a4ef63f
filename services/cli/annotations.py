"""Verdicts as annotations of GitHub Actions: lines that its runner takes out of a step's output.

Owns the syntax of workflow commands, and what keeps text of others from being one. Must not know
streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.console import printable
from services.cli.verdict import details_by_rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.handshake.trace.checker import VmVerdict


def annotation_lines(
    verdicts: Sequence[VmVerdict], failure: tuple[str, str] | None
) -> Iterator[str]:
    """Yield a line for each broken rule of each VM.

    Args:
        verdicts: The verdicts on VMs.
        failure: Reason and message of what is wrong with the trace as a whole; None: nothing.
    """
    if failure is not None:
        yield _error(*failure)
    for vm in verdicts:
        for rule, details in details_by_rule(vm).items():
            yield _error(rule, f"VM {vm.vm_id}: " + "\n".join(details))


def _error(title: str, message: str) -> str:
    return f"::error title={_property(f'handshake {title}')}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def inert(text: str) -> str:
    """Return a line that the runner shows as it is, and does not take for a command.

    The older form of a command, `##[…]`, counts anywhere in a line.
    """
    shown = text.replace("##[", "# #[")
    return f"\\{shown}" if shown.lstrip().startswith("::") else shown

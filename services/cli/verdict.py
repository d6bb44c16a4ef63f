"""The verdict on traces: reads files, the standard input and URLs, and calls the trace checker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli.download import download
from services.cli.trace_urls import is_url, query_url
from services.handshake.errors import InvalidArgumentError, NotFoundError, PortholeError
from services.handshake.trace.checker import IDLE_TAGS, VmVerdict, verify
from services.handshake.trace.formats import parse_trace
from services.handshake.trace.gzipped import unpack
from services.handshake.trace.recorded import Recording, joined
from services.rpc.inputs import read_bounded, read_standard_input

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VALID: Final = "valid"
"""The word for a valid handshake in output; an invalid one shows the broken rule instead."""

_SHOWN_VMS: Final = 10
"""Most VMs that an error names."""

STANDARD_INPUT: Final = "-"

TRACE_LIMIT_BYTES: Final = 256 << 20
"""Most bytes of all traces that are judged together, some thousand VMs: they are in memory."""

_LARGER_TRACE: Final = (
    "all inputs of one call share this bound: give each run of the services a --trace-file of its "
    "own"
)


def judge(
    sources: Sequence[str],
    idle: frozenset[str] = frozenset(),
    *,
    trace_ids: Sequence[str] = (),
    token: str = "",
) -> list[VmVerdict]:
    """Judge the handshake of every VM in traces, which are put together first.

    Args:
        sources: Files, pipes, URLs, and "-" for the standard input, in any format of
            services.handshake.trace.formats, each also as gzip.
        idle: Tags of devices that got no request, in addition to those that may always be idle.
        trace_ids: Traces to ask a URL for that is the base of Jaeger or Tempo.
        token: Bearer token for the servers of URLs; empty: none.

    Raises:
        OSError: A file cannot be read.
        InvalidArgumentError: INPUT_TOO_LARGE, INPUT_TOO_SLOW, INPUT_URL; TRACE_SYNTAX;
            TRACE_WITHOUT_VM.
        NotFoundError: TRACE_NOT_FOUND.
        UnavailableError: INPUT_UNREACHABLE.
    """
    return verify(joined(_recordings(sources, trace_ids, token)), IDLE_TAGS | idle)


def _recordings(
    sources: Sequence[str], trace_ids: Sequence[str], token: str
) -> Iterator[Recording]:
    left_bytes = TRACE_LIMIT_BYTES
    for source in dict.fromkeys(_addresses(sources, trace_ids)):
        remedy = _LARGER_TRACE
        if source == STANDARD_INPUT:
            name, content = "standard input", read_standard_input(left_bytes, remedy)
        elif is_url(source):
            name, content = source, download(source, left_bytes, remedy, token)
        else:
            name, content = source, read_bounded(Path(source), left_bytes, remedy)
        content = unpack(content, name, left_bytes, remedy)
        left_bytes -= len(content)
        yield parse_trace(content, name)


def _addresses(sources: Sequence[str], trace_ids: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if not is_url(source):
            yield source
        elif trace_ids:
            yield from (query_url(source, trace_id) for trace_id in trace_ids)
        else:
            yield query_url(source)


def only(verdicts: Sequence[VmVerdict], vm_ids: Sequence[str]) -> list[VmVerdict]:
    """Return the verdicts on some VMs; without `vm_ids` all of them.

    Raises:
        InvalidArgumentError: TRACE_WITHOUT_VM: one of the VMs is not among them.
    """
    missing = [vm_id for vm_id in vm_ids if vm_id not in {vm.vm_id for vm in verdicts}]
    if missing:
        raise InvalidArgumentError(
            "TRACE_WITHOUT_VM",
            f"the trace has no event of VM {', '.join(missing)}; it has {_listed(verdicts)}",
        )
    return [vm for vm in verdicts if not vm_ids or vm.vm_id in vm_ids]


def miscounted(verdicts: Sequence[VmVerdict], expected: int | None) -> PortholeError | None:
    """Return the failure when there are more or fewer VMs than expected; None: there is none."""
    if expected is None or len(verdicts) == expected:
        return None
    return NotFoundError(
        "TRACE_VM_COUNT",
        f"the trace has {len(verdicts)} VMs, and {expected} are expected; "
        f"it has {_listed(verdicts)}",
    )


def _listed(verdicts: Sequence[VmVerdict]) -> str:
    shown = [vm.vm_id for vm in verdicts[:_SHOWN_VMS]]
    more = f" and {len(verdicts) - _SHOWN_VMS} more" if len(verdicts) > _SHOWN_VMS else ""
    return f"{', '.join(shown)}{more}" if shown else "none"


def broken_rules(verdicts: Sequence[VmVerdict]) -> list[str]:
    """Return the names of the broken rules, each once, in the order of the verdicts."""
    return list(dict.fromkeys(item.rule for vm in verdicts for item in vm.violations))


def details_by_rule(vm: VmVerdict) -> dict[str, list[str]]:
    """Return the details of the breaches of each broken rule of a VM."""
    found: dict[str, list[str]] = {}
    for violation in vm.violations:
        found.setdefault(violation.rule, []).append(violation.detail)
    return found

"""ErrorReason of porthole.errors.v1 has every reason of the code, and is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.errors.v1.error_reason_pb2 import ERROR_REASON_UNSPECIFIED, ErrorReason

from services.devicehost.vhost_user import messages
from services.devicehost.virtio import chain
from services.handshake import errors
from services.handshake.errors import PortholeError
from services.handshake.trace.table import RULES
from services.rpc.status import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "errors.md"
REASON = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
# Other words in upper case: states, statuses, variables, names in modules, a verdict.
NO_REASONS = {
    *("DEADLINE_EXCEEDED", "RTA_DST", "TRACE_MISSING"),
    *("IFLA_LINKINFO", "IFLA_INFO_KIND", "IFLA_MTU"),
    *("PORTHOLE_LISTEN", "PORTHOLE_OTLP_ENDPOINT", "PORTHOLE_OWNER", "PORTHOLE_PASST"),
    "PORTHOLE_RUN_DIR",
    *("PORTHOLE_TRACE_FILE", "PORTHOLE_TRACE_TOKEN", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
    *("GITHUB_ACTIONS", "LEAST_DESCRIPTORS", "VM_ID"),
    *("DEVICE_DELETED", "GUEST_PANICKED"),
}
KINDS = {
    name: error.kind
    for module in (errors, chain, messages)
    for name, error in vars(module).items()
    if isinstance(error, type) and issubclass(error, PortholeError)
}
REASONS = {name for name, number in ErrorReason.items() if number != ERROR_REASON_UNSPECIFIED}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for file in (ROOT / "services").rglob("*.py"):
        if file != Path(errors.__file__):
            yield file, ast.parse(file.read_text())


def refusals(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The errors that a module makes: the name of the class, and the reason as an expression."""
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in KINDS
            and node.args
        ):
            yield node.func.id, node.args[0]


def words() -> set[str]:
    """What can be a reason in the modules that make errors, or name the reasons of some."""
    found: set[str] = set()
    for _, module in modules():
        imported = {node.module for node in ast.walk(module) if isinstance(node, ast.ImportFrom)}
        if "services.handshake.errors" in imported or any(refusals(module)):
            constants = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant)}
            found |= {
                word for word in constants if isinstance(word, str) and REASON.fullmatch(word)
            }
    return found


def documented() -> dict[str, str]:
    rows = [row.split(" | ") for row in DOCUMENT.read_text().splitlines() if row.startswith("| ")]
    return {row[0].removeprefix("| "): " ".join(row[1:]) for row in rows[1:]}


def test_the_enum_has_every_reason_of_the_code_and_no_other() -> None:
    found = words()
    assert found >= NO_REASONS
    assert found - NO_REASONS - REASONS - set(RULES) == set()
    assert REASONS - found == set()


def test_no_reason_is_put_together() -> None:
    composed = [
        f"{file}: {ast.unparse(reason)}"
        for file, module in modules()
        for _, reason in refusals(module)
        if isinstance(reason, ast.JoinedStr | ast.BinOp)
    ]
    assert composed == []


def test_the_documented_status_is_that_of_the_code() -> None:
    meanings = {
        reason: text for reason, text in documented().items() if not text.startswith("exit code")
    }
    wrong = {
        (reason.value, KINDS[name])
        for _, module in modules()
        for name, reason in refusals(module)
        if isinstance(reason, ast.Constant)
        and KINDS[name] not in meanings.get(str(reason.value), KINDS[name])
    }
    assert wrong == set()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="protoc is built for Python 3.11 to 3.13")
def test_the_document_is_that_of_the_enum() -> None:
    written = subprocess.run(
        [sys.executable, ROOT / "protos" / "document_errors.py"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert written.stdout == DOCUMENT.read_text(), "run `make protos`"
    assert documented().keys() - {"reason"} == REASONS


def test_the_document_has_the_domain() -> None:
    assert f"`{DOMAIN}`" in DOCUMENT.read_text()

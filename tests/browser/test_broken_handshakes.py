"""Every rule can be shown broken: the tests in a browser have a handshake for each."""

from __future__ import annotations

import pytest

from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines
from services.handshake.trace.table import CLAUSES
from tests.browser.broken_handshakes import breaking, export


@pytest.mark.parametrize("rule", [clause.rule for clause in CLAUSES])
def test_each_rule_has_a_handshake_that_breaks_it(rule: str) -> None:
    vm_id, requests = export(breaking(rule))
    text = "".join(f"{request}\n" for request in requests)
    [verdict] = verify(parse_otlp_lines(text, "test"))
    assert verdict.vm_id == vm_id
    assert rule in {item.rule for item in verdict.violations}

"""The table of clauses: a row for each clause of docs/handshake.md that a trace can show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake.trace import judgement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.handshake.trace.clause import Clause

CLAUSES: Final[tuple[Clause, ...]] = (*judgement.OF_HANDSHAKE, *judgement.CLAUSES)

RULES: Final[Mapping[str, Clause]] = {clause.rule: clause for clause in CLAUSES}
"""Every clause by the stable name of its rule."""

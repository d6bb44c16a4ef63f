"""System calls give the same result on a share and on a plain directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.comparison import compare
from tests.conformance.tables import Case, read_tables

if TYPE_CHECKING:
    from tests.conformance.actor import Actor
    from tests.conformance.conftest import Place

pytestmark = pytest.mark.fuse


@pytest.mark.parametrize("case", read_tables(), ids=lambda case: case.name)
def test_as_on_the_host(case: Case, place: Place, actors: dict[str, Actor]) -> None:
    compare(case, place, actors)

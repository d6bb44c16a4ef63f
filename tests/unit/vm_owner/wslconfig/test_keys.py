"""The table of keys: each name once, and docs/wslconfig.md shows the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.vm_owner import warnings
from services.vm_owner.wslconfig import KEYS, Here, Key, NetworkingMode
from services.vm_owner.wslconfig.keys import BY_NAME

DOCUMENT = Path(__file__).parents[4] / "docs" / "wslconfig.md"


def row(key: Key) -> str:
    names = ", ".join(f"`{name}`" for name in key.names)
    if key.here is Here.IGNORED:
        return f"| {names} | {key.default} | {key.wsl} |"
    return f"| {names} | {key.default} | {key.wsl} | {key.here}: {key.note} |"


def test_the_document_has_the_table_in_the_same_order() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    keys = [line for line in rows if line.split("`")[1] in {key.name for key in KEYS}]
    assert keys == [row(key) for key in KEYS]


def test_the_document_has_every_warning_of_a_file() -> None:
    ids = {value for name, value in vars(warnings).items() if name.startswith("CONFIG_")}
    text = DOCUMENT.read_text()
    assert [ident for ident in ids if f"`{ident}`" not in text] == []


def test_each_name_belongs_to_one_key() -> None:
    names = [name.lower() for key in KEYS for name in key.names]
    assert len(names) == len(set(names)) == len(BY_NAME)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_that_is_not_ignored_is_read_and_explained(key: Key) -> None:
    used = key.here is not Here.IGNORED
    assert bool(key.field) is bool(key.want) is bool(key.note) is used


def test_wsl_has_no_other_networking_modes() -> None:
    mode = BY_NAME["wsl2.networkingmode"]
    for value in ("None", "NAT", "Bridged", "Mirrored", "Consomme", "VirtioProxy"):
        assert isinstance(mode.read(value), NetworkingMode)
    with pytest.raises(ValueError, match="moon"):
        mode.read("moon")

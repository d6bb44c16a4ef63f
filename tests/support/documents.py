"""Checks JSON documents of `porthole` against the schemas that are published in docs/schemas."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from services.cli.schemas import PRINTED, schema_name

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def check_document(document: dict[str, Any]) -> None:
    """Check that a document is as its schema says, and has nothing that the schema lacks."""
    published = json.loads((SCHEMAS / f"{document['schema']}.json").read_text())
    Draft202012Validator(published).validate(document)
    Draft202012Validator(closed(published)).validate(document)


def check_output(arguments: tuple[str, ...], document: dict[str, Any]) -> None:
    """Check what a command printed with --json: it is the document of that command."""
    check_document(document)
    assert document["schema"] == schema_name(PRINTED[command_of(arguments)])


@cache
def command_of(arguments: tuple[str, ...]) -> str:
    """The command that has these arguments."""
    words = " ".join(arguments)
    [name] = [name for name in PRINTED if words == name or words.startswith(f"{name} ")]
    return name


def closed(schema: Any) -> Any:
    """A schema that allows no field that it does not have."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        inner["additionalProperties"] = False
    return inner

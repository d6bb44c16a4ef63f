"""`python -m services.cli.schemas DIRECTORY`: writes the JSON Schemas of the command's documents.

Owns which command prints which document, and the form of a schema. `make schemas` writes those in
docs/schemas; a test compares them with the code.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from services.cli.demo.report import DemoReport
from services.cli.documents import (
    AdapterLimits,
    AddedPort,
    AddedShare,
    AppliedCapabilities,
    PortList,
    ShareList,
    Verdict,
    Versions,
    VmEvent,
    VmList,
)
from services.cli.views import VmView

PRINTED: Final[dict[str, Any]] = {
    "handshake verify": Verdict,
    "port add": AddedPort,
    "port list": PortList,
    "session apply": AppliedCapabilities,
    "share add": AddedShare,
    "share list": ShareList,
    "version": Versions,
    "vm create": VmView,
    "vm limit": AdapterLimits,
    "vm list": VmList,
    "vm show": VmView,
    "vm watch": VmEvent,
}
"""The type of the document that each command prints with --json; `vm watch` prints one a line."""

_DIALECT: Final = GenerateJsonSchema.schema_dialect
_ATTRIBUTE: Final = re.compile(r"^(\w+): (.+(?:\n {4,}.+)*)", re.MULTILINE)


class _OfOutput(GenerateJsonSchema):
    """A schema of what is written: each field is there, and names stand for themselves."""

    def field_is_required(self, *_: Any, **__: Any) -> bool:
        return True

    def field_title_should_be_set(self, *_: Any) -> bool:
        return False


def schema_name(shape: Any) -> str:
    """Return the name of a document, or of a union of documents that have one name."""
    return str((get_args(shape) or (shape,))[0].SCHEMA)


def schemas() -> dict[str, dict[str, Any]]:
    """Return all schemas by their names."""
    sources: dict[str, str] = {}
    shapes: dict[str, Any] = {}
    for command, shape in PRINTED.items():
        name = schema_name(shape)
        shapes[name] = shape
        sources[name] = f"{sources[name]}, " if name in sources else "Printed by "
        sources[name] += f"`porthole {command} --json`"
    shapes[DemoReport.SCHEMA] = DemoReport
    sources[DemoReport.SCHEMA] = "Written by `porthole demo`, as report.json"
    return {name: _schema(name, shapes[name], sources[name]) for name in sorted(shapes)}


def _schema(name: str, shape: Any, source: str) -> dict[str, Any]:
    schema = TypeAdapter(shape).json_schema(mode="serialization", schema_generator=_OfOutput)
    definitions = schema.get("$defs", {})
    parts = get_args(shape)
    for part in parts or (shape,):
        own = definitions[part.__name__] if parts else schema
        own["properties"] = {"schema": {"const": name, "type": "string"}, **own["properties"]}
        own["required"] = ["schema", *own["required"]]
    documented = {part.__name__: part for part in _dataclasses_of(shape)}
    for title, part in documented.items():
        _describe(definitions.get(title, schema), part)
    head = {"$schema": _DIALECT, "$id": f"urn:porthole:schema:{name}", "title": name}
    text = schema.pop("description", "One event of a VM.")
    schema.pop("title", None)
    return {**head, "description": f"{text} {source}.", **schema}


def _dataclasses_of(shape: Any) -> set[type]:
    """Return the dataclasses of a document, also nested ones."""
    found: set[type] = set()
    todo = [shape]
    while todo:
        part = todo.pop()
        todo += get_args(part)
        if hasattr(part, "__dataclass_fields__") and part not in found:
            found.add(part)
            todo += inspect.get_annotations(part, eval_str=True).values()
    return found


def _describe(schema: dict[str, Any], part: type) -> None:
    """Take the descriptions of a dataclass and its fields from docstrings."""
    schema["description"] = inspect.cleandoc(part.__doc__ or "").partition("\n\n")[0]
    for owner in reversed(part.__mro__):
        _, _, attributes = inspect.cleandoc(owner.__doc__ or "").partition("\nAttributes:\n")
        for field, text in _ATTRIBUTE.findall(inspect.cleandoc(attributes)):
            if field in schema["properties"]:
                described = schema["properties"][field]
                described["description"] = " ".join(text.split())
                described.pop("default", None)  # every document has every field


def text_of(schema: dict[str, Any]) -> str:
    """Return the text of a schema's file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all schemas into a directory, and remove others from it."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.json"):
        old.unlink()
    for name, schema in schemas().items():
        (directory / f"{name}.json").write_text(text_of(schema))


if __name__ == "__main__":
    main()

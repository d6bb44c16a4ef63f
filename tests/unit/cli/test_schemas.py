"""The schemas in docs/schemas are those of the code, of every command that prints JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.main import get_command

from services.cli.demo.report import DemoReport, VmReport
from services.cli.documents import (
    AdapterLimits,
    AddedPort,
    AddedShare,
    AppliedCapabilities,
    BrokenRule,
    DeviceEvent,
    ExhaustedEvent,
    JudgedVm,
    PoolLatchedEvent,
    PortList,
    ShareList,
    StateEvent,
    UnknownEvent,
    Verdict,
    Versions,
    VmList,
    WarningEvent,
    as_document,
)
from services.cli.main import app
from services.cli.schemas import PRINTED, schema_name, schemas, text_of
from services.cli.views import (
    CopyResult,
    HttpResult,
    PingResult,
    PortView,
    RateLimitView,
    VersionView,
)
from tests.support.documents import SCHEMAS, check_document
from tests.unit.cli.test_tables import VM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.cli.documents import Document

SHARE = VM.shares[0]
VERSION = VersionView("porthole.vmowner.v1.VmOwner", "0.1.0", ("v1",), {"bundled_kernel": "6"})
VM_REPORT = VmReport(
    kind="WSLC",
    warnings=["PoolNotAsRequested"],
    copied=CopyResult(1, 2, 3, 4),
    files_through_mount_point=5,
    ping=PingResult(3, 3, 0.001),
    http=HttpResult(200, 1, "ab"),
    seconds_by_step={"boot": 0.5},
    failures=["read: a: differs"],
)
DOCUMENTS: list[Document] = [
    VM,
    VmList((VM, VM)),
    VmList(()),
    ShareList((SHARE,)),
    AddedShare("s", "d", "/srv", "data", "ro", elevated=False, already_existed=True),
    AdapterLimits("d", "eth0", RateLimitView(5000, 7, 0, 0), RateLimitView(0, 0, 0, 0)),
    AddedPort("tcp", "127.0.0.1", 8080, 80, "listening"),
    PortList((PortView("udp", "::", 53, 5353, "lost", "PORT_IN_USE", "another has it"),)),
    PortList(()),
    AppliedCapabilities("v1", "", already_applied=False),
    Verdict("valid", (JudgedVm("v1", "WSLC", "", 0, (BrokenRule("ORDER", "why"),), valid=False),)),
    Versions("0.1.0", ("v1",), "active", {"vm_owner": VERSION}),
    Versions("0.1.0", ("v1",), "active", {}),
    StateEvent("running"),
    WarningEvent("Id", "text"),
    DeviceEvent("d", "data", "attached", ""),
    PoolLatchedEvent(0x3C000000, 64 << 20),
    ExhaustedEvent("d", "data", "handles", 10, 10, "all in use"),
    UnknownEvent(),
    DemoReport(vms=[VM_REPORT, VmReport(kind="WSL2")], tree_excluded=["site-packages"]),
]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """The schemas of objects with fields in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from objects(item)


def commands_with_json(command: Any, name: str = "") -> Iterator[str]:
    if hasattr(command, "list_commands"):
        for inner in command.list_commands(None):
            yield from commands_with_json(command.get_command(None, inner), f"{name} {inner}")
    elif any("--json" in parameter.opts for parameter in command.params):
        yield name.strip()


def test_the_published_schemas_are_those_of_the_code() -> None:
    published = {file.stem: file.read_text() for file in SCHEMAS.glob("*.json")}
    made = {name: text_of(schema) for name, schema in schemas().items()}
    assert published == made, "run `make schemas`"


def test_every_command_that_prints_json_has_a_schema() -> None:
    assert set(commands_with_json(get_command(app))) == set(PRINTED)


def test_the_index_has_every_schema_and_command() -> None:
    text = (SCHEMAS / "README.md").read_text()
    for command, shape in PRINTED.items():
        assert f"| `porthole {command}` | [{schema_name(shape)}]" in text
    for name in schemas():
        assert f"({name}.json)" in text


@pytest.mark.parametrize("name", schemas())
def test_a_schema_is_one_of_2020_12_and_explains_each_field(name: str) -> None:
    schema = schemas()[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    for part in objects(schema):
        assert part["description"]
        for field, facts in part["properties"].items():
            assert field == "schema" or facts["description"].endswith("."), field
        assert part["required"] == list(part["properties"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: type(each).__name__)
def test_a_document_is_as_its_schema_says(document: Document) -> None:
    made = json.loads(json.dumps(as_document(document)))
    assert next(iter(made)) == "schema"
    check_document(made)
    # A reader ignores fields that it does not know: a later document of this version may have them.
    validator = Draft202012Validator(schemas()[document.SCHEMA])
    validator.validate({**made, "later": 1})
    with pytest.raises(ValidationError):
        check_document({**made, "later": 1})
    for field in made:
        with pytest.raises(ValidationError):
            validator.validate({key: value for key, value in made.items() if key != field})


def test_every_document_is_an_example_here() -> None:
    assert {document.SCHEMA for document in DOCUMENTS} == set(schemas())

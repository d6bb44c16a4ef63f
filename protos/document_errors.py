"""Prints docs/errors.md from the comments of porthole.errors.v1.ErrorReason.

Owns the form of that document; its words are those of the .proto file. A comment on its own that
begins with "# " opens a section, any other is a paragraph; the comment of a value is its status, a
colon, and what it means.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor_pb2 import (
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


PROTOS: Final = Path(__file__).resolve().parent
FILE: Final = "porthole/errors/v1/error_reason.proto"
HEAD: Final = """# Error reasons

[//]: # (Generated from protos/{file} by `make protos`; edit that file.)
"""
WIDTH: Final = 115
TABLE: Final = "| reason | status | what it means |\n|---|---|---|"


def errors_document() -> str:
    """Return the text of docs/errors.md."""
    file = _described()
    enum = [FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, 0]
    comments = {tuple(place.path): place for place in file.source_code_info.location}
    blocks = [HEAD.format(file=FILE), *_paragraphs(comments[*enum].leading_comments)]
    rows: list[str] = []
    for index, value in enumerate(file.enum_type[0].value):
        if value.number == 0:
            continue
        place = comments[*enum, EnumDescriptorProto.VALUE_FIELD_NUMBER, index]
        if place.leading_detached_comments:
            blocks += _table(rows)
            rows = []
        for text in place.leading_detached_comments:
            blocks += _paragraphs(text)
        status, _, meaning = " ".join(place.leading_comments.split()).rstrip(".").partition(": ")
        rows.append(f"| {value.name} | {status} | {meaning} |")
    return "\n\n".join([*(block.strip() for block in blocks), *_table(rows)]) + "\n"


def _paragraphs(comment: str) -> Iterator[str]:
    lines = "\n".join(line.strip() for line in comment.strip().splitlines())
    for paragraph in lines.split("\n\n"):
        text = " ".join(paragraph.split())
        yield f"#{text}" if text.startswith("# ") else textwrap.fill(text, WIDTH)


def _table(rows: list[str]) -> list[str]:
    return ["\n".join([TABLE, *rows])] if rows else []


def _described() -> FileDescriptorProto:
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                "-I",
                PROTOS,
                "--include_source_info",
                f"--descriptor_set_out={out.name}",
                FILE,
            ],
            check=True,
            # protoc is beside the packages of .venv, not among them (requirements-protos.lock).
            env={**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "protoc")},
        )
        return FileDescriptorSet.FromString(out.read()).file[0]


if __name__ == "__main__":
    print(errors_document(), end="")

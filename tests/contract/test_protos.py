"""The .proto files: the generated code is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
SOURCES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("porthole/**/*.proto"))
BIN = Path(sys.executable).parent
PROTOC = Path(sys.prefix) / "protoc"


def protoc(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *arguments, *SOURCES],
        check=True,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(PROTOC)},
    )


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="protoc is built for Python 3.11 to 3.13")
def test_the_generated_code_is_that_of_the_proto_files(tmp_path: Path) -> None:
    protoc(
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        f"--mypy_out=quiet:{tmp_path}",
        f"--mypy_grpc_out=quiet:{tmp_path}",
    )
    generated = contents(tmp_path)
    committed = contents(ROOT / "clients" / "python")
    assert sorted(generated) == sorted(committed), "run `make protos`"
    drifted = [name for name in generated if generated[name] != committed[name]]
    assert drifted == [], "run `make protos`"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for pattern in ("*_pb2*.py", "*_pb2*.pyi")
        for path in directory.rglob(pattern)
    }

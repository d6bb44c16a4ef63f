from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from services.cli.exit_codes import OK
from services.cli.main import app
from services.devicehost import fastpath
from services.rpc.version import SOFTWARE_VERSION
from tests.support.documents import check_output

if TYPE_CHECKING:
    from pathlib import Path


RUNNER = CliRunner()


def test_the_version_is_shown_without_services(run_dir: Path) -> None:
    flags = ["--run-dir", str(run_dir), "--wait", "0.1"]
    result = RUNNER.invoke(app, [*flags, "version"])
    assert result.exit_code == OK
    assert result.stdout.startswith(f"porthole {SOFTWARE_VERSION}")
    result = RUNNER.invoke(app, [*flags, "version", "--json"])
    document = json.loads(result.stdout)
    check_output(("version",), document)
    assert document == {
        "schema": "versions.v1",
        "porthole": SOFTWARE_VERSION,
        "api_versions": ["v1"],
        "native_fast_path": fastpath.status,
        "services": {},
    }

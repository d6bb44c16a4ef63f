"""The `porthole` command as a process, set to one run directory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from services.cli.exit_codes import OK
from tests.support.documents import check_output

if TYPE_CHECKING:
    from pathlib import Path

PORTHOLE = (sys.executable, "-m", "services.cli.main")
START_S = 60.0
CALL_S = 90.0


class Porthole:
    """The command, set to one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.trace = run_dir / "trace.jsonl"
        self.environment = {
            **os.environ,
            "PORTHOLE_RUN_DIR": str(run_dir),
            "PORTHOLE_TRACE_FILE": str(self.trace),
        }

    def run(self, *arguments: str, code: int = OK) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [*PORTHOLE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        return result

    def json(self, *arguments: str) -> Any:
        """Run a command with --json; its document is checked against the published schema."""
        document = json.loads(self.run(*arguments, "--json").stdout)
        check_output(arguments, document)
        return document

    def verdict(self, vm_id: str) -> dict[str, Any]:
        document = self.json("handshake", "verify", str(self.trace))
        (vm,) = [vm for vm in document["vms"] if vm["vm_id"] == vm_id]
        return {key: vm[key] for key in ("valid", "token", "devices")}

    def up(self, *flags: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PORTHOLE, "up", *flags],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        assert readable, "porthole up printed nothing"
        first = process.stdout.readline()
        assert first.startswith("porthole is up in "), first + process.communicate()[1]
        return process
